"""The program that connects interfaces with taps: its valid answers, and its failures."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from hawse.errors import ConfigError, HostError
from hawse.monitor.network import host_network
from hawse.monitor.network.host_network import Joining
from hawse.version import VERSION

#: The start of a fake program: its socket, and functions that send a descriptor of /dev/null or an answer.
PROLOGUE = """
import fcntl, json, os, socket, sys, termios
connection = socket.socket(fileno=int(sys.argv[1]))
request = json.loads(connection.recv(65536))
def tap():
    socket.send_fds(connection, [b"t"], [os.open("/dev/null", os.O_RDWR)])
def answer(count, **more):
    line = {"interfaces": [{"index": n} for n in range(count)], "warnings": []} | more
    connection.sendall(json.dumps(line).encode() + b"\\n")
def await_reader():
    while any(fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4))):
        pass
"""


@pytest.fixture(autouse=True)
def descriptors() -> Iterator[None]:
    """Check that no descriptor is left open."""
    before = os.listdir("/proc/self/fd")
    yield
    assert os.listdir("/proc/self/fd") == before


def joining(script: str) -> Joining:
    namespace = os.open("/dev/null", os.O_RDONLY)
    try:
        return Joining(namespace, [7, 9], "/record", program=PROLOGUE + script)
    finally:
        os.close(namespace)


def test_program_gets_the_interfaces_the_namespace_and_the_record() -> None:
    _, warnings = joining("answer(0, warnings=[request, sys.argv[3], os.fstat(int(sys.argv[2])).st_rdev])").wait()
    assert warnings == [{"wanted": [7, 9]}, "/record", os.stat("/dev/null").st_rdev]


@pytest.mark.parametrize(
    "script",
    [
        pytest.param("answer(3); tap(); tap(); tap()", id="taps after the answer"),
        pytest.param("answer(3, warnings=['x' * 1_500_000]); tap(); tap(); tap()", id="long answer"),
        pytest.param(
            "connection.sendall(b'{\"interfaces\": [{\"index\": 0}, {\"index\": 1}, {\"index\": 2}],')\n"
            "await_reader()\n"
            "connection.sendall(b' \"warnings\": []}\\n'); tap(); tap(); tap()",
            id="answer in two pieces",
        ),
    ],
)  # fmt: skip
def test_each_interface_has_its_tap(script: str) -> None:
    joined, _ = joining(script).wait()
    assert [interface["index"] for interface, _ in joined] == [0, 1, 2]
    for _, tap in joined:
        assert os.fstat(tap).st_rdev == os.stat("/dev/null").st_rdev
        os.close(tap)


@pytest.mark.parametrize(
    "script",
    [
        pytest.param("", id="no answer"),
        pytest.param("connection.sendall(b'nonsense\\n')", id="no JSON"),
        pytest.param("answer(3); tap(); tap()", id="a tap too few"),
        pytest.param("answer(3)", id="no tap"),
        pytest.param("connection.sendall(b'x' * 3_000_000)", id="answer without end"),
        pytest.param("os.abort()", id="crash"),
    ],
)
def test_program_that_ends_before_its_answer_is_an_error(script: str) -> None:
    with pytest.raises(
        HostError, match="the program that joins the network interfaces ended without an answer"
    ) as caught:
        joining(script).wait()
    assert caught.value.hint


def test_error_of_the_program_is_raised() -> None:
    script = (
        "from hawse.errors import ConfigError\n"
        "connection.sendall(json.dumps({'error': ConfigError('too many', hint='h').to_wire()}).encode() + b'\\n')"
    )
    with pytest.raises(ConfigError, match="too many") as caught:
        joining(script).wait()
    assert caught.value.hint == "h"


def test_end_closes_the_connection_and_waits() -> None:
    """The program sees the end of the connection, undoes its work and exits."""
    joining("connection.recv(1) == b'' or os.abort()").end()


def test_program_of_another_version_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """hawse was updated in place while the sandbox runs: the program's code is newer than the monitor's."""
    monkeypatch.setattr(host_network, "VERSION", "0.0.1")
    namespace = os.open("/dev/null", os.O_RDONLY)
    started = Joining(namespace, [7], "/record")
    os.close(namespace)
    with pytest.raises(HostError, match=rf"hawse was updated from 0\.0\.1 to {VERSION} after the sandbox was started"):
        started.wait()
