"""The real agent at the other end of a socket: its answers to valid calls, and to hosts that break the protocol."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hawse.errors import CommandError, LinkError, NotFoundError, StateError, VmError
from hawse.link.agreed import PROTOCOL
from hawse.link.flow import WINDOW
from hawse.link.frames import DATA, EOF, EVENT, HEADER, encode
from hawse.link.messages import encode_call
from hawse.link.streams import MAX_PRESERVED, STREAMS
from tests.support.agent import Agent


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    with Agent(str(tmp_path)) as started:
        assert started.event("hello")["protocol"] == PROTOCOL
        yield started


def shell(script: str) -> dict[str, Any]:
    return {"args": ["/bin/sh", "-c", script], "cwd": "/", "env": []}


def create(agent: Agent, script: str, *descriptors: str, process: int = 1) -> None:
    container: dict[str, Any] = {"container": "c1", "joins": {}, "devices": []}
    agent.call("create", **container, process=process, descriptors=descriptors, spec={"process": shell(script)})


def execute(agent: Agent, number: int, spec: dict[str, Any], *descriptors: str) -> None:
    agent.call("exec", container="c1", process=number, descriptors=descriptors, spec=spec)


def test_container_from_create_to_exit(agent: Agent) -> None:
    create(agent, "cat; echo err >&2; exit 7")
    agent.write(1, b"to the process\n")
    assert agent.call("start", container="c1") is None
    output, code = agent.output_until_exit(1)
    assert output == {1: b"to the process\n", 2: b"err\n"}
    assert code == 7


def test_preserved_descriptors_are_pipes_and_sockets_of_the_guest(agent: Agent) -> None:
    script = (
        "cat <&3; echo out >&4; exec 4>&-; head -c 3 <&5; echo back >&5; exec 5>&-; read x; readlink /proc/self/fd/5"
    )
    create(agent, script, "in", "out", "both")
    agent.call("start", container="c1")
    agent.write(1, b"first ", descriptor=3)
    agent.write(1, b"second", descriptor=5)
    ended: set[int] = set()
    received = {1: b"", 4: b"", 5: b""}
    while not {4, 5} <= ended:  # both arrive before the process ends: it has closed them
        stream, kind, payload = next(agent.everything())
        if kind == EOF:
            ended.add(stream - STREAMS)
        elif kind == DATA:
            received[stream - STREAMS] += payload
    agent.write(1, b"go\n")
    output, code = agent.output_until_exit(1)
    received[1] += output[1]
    assert received == {1: b"first sec", 4: b"out\n", 5: b"back\n"}
    assert code == 1, "the process has closed its last descriptor"


def test_process_that_has_closed_its_output_still_reads(agent: Agent) -> None:
    program = "import socket as s; c = s.socket(fileno=3); c.send(b'all'); c.shutdown(s.SHUT_WR); print(c.recv(9))"
    create(agent, "exec sleep 1000")
    agent.call("start", container="c1")
    execute(agent, 2, {"args": ["/usr/bin/python3", "-c", program], "cwd": "/", "env": []}, "both")
    frames = [next(agent.everything()) for _ in range(2)]
    assert frames == [(2 * STREAMS + 3, DATA, b"all"), (2 * STREAMS + 3, EOF, b"")]
    agent.write(2, b"answer", descriptor=3)
    assert agent.output_until_exit(2) == ({1: b"b'answer'\n", 2: b""}, 0)


def test_maximum_number_of_descriptors(agent: Agent) -> None:
    """The numbers include some that the agent uses itself."""
    create(agent, "exec sleep 1000")
    agent.call("start", container="c1")
    numbers = range(3, 3 + MAX_PRESERVED)
    bash = {"args": ["/bin/bash", "-c", f"for n in {{3..{numbers[-1]}}}; do echo $n >&$n; done"], "cwd": "/", "env": []}
    execute(agent, 2, bash, *["out"] * MAX_PRESERVED)
    output, code = agent.output_until_exit(2)
    assert (output, code) == ({1: b"", 2: b""} | {number: f"{number}\n".encode() for number in numbers}, 0)


def test_exit_code_of_a_killed_process_is_128_plus_the_signal(agent: Agent) -> None:
    create(agent, "exec sleep 1000")
    agent.call("start", container="c1")
    agent.call("signal", container="c1", process=1, signal=15, everyone=False)
    assert agent.output_until_exit(1)[1] == 143
    with pytest.raises(StateError, match="container not running"):
        agent.call("signal", container="c1", process=1, signal=15, everyone=False)


def test_flood_waits_for_credit_and_does_not_block_other_processes(agent: Agent) -> None:
    create(agent, "exec sleep 1000")
    agent.call("start", container="c1")
    size = 3 * WINDOW
    execute(agent, 2, shell(f"head -c {size} /dev/zero"))
    execute(agent, 3, shell("echo quick"))
    # No credit is returned yet: process 2 sends a window, process 3 everything.
    received, quick = 0, b""
    for stream, kind, payload in agent.everything():
        if kind == DATA and stream == 2 * STREAMS + 1:
            received += len(payload)
        elif kind == DATA and stream == 3 * STREAMS + 1:
            quick += payload
        if quick and received >= WINDOW:
            break
    assert (quick, received) == (b"quick\n", WINDOW)
    agent.port.send(encode(2 * STREAMS + 1, 5, WINDOW.to_bytes(4, "big")))
    output, code = agent.output_until_exit(2)
    assert received + len(output[1]) == size
    assert code == 0


def test_cancelled_creation_leaves_nothing(agent: Agent) -> None:
    """A host that no longer waits for the creation deletes the container whenever it appears."""
    spec = {"process": shell("exec sleep 1000"), "annotations": {"takes": "1"}}
    params = {"container": "c1", "process": 1, "descriptors": [], "joins": {}, "spec": spec, "devices": []}
    agent.send("create", **params)
    agent.send("delete", container="c1")
    answers = [agent.answer(), agent.answer()]
    assert [error for _, _, error in answers] == [None, None]
    with pytest.raises(NotFoundError):
        agent.call("delete", container="c1")
    create(agent, "exit 3", process=2)
    agent.call("start", container="c1")
    assert agent.output_until_exit(2)[1] == 3


@pytest.mark.parametrize(
    ("method", "params", "kind"),
    [
        ("nonsense", {}, VmError),
        ("start", {"container": "c9"}, NotFoundError),
        ("start", {}, VmError),
        ("signal", {"container": "c9", "process": 1, "signal": 9, "everyone": False}, NotFoundError),
        ("exec", {"container": "c9", "process": 5, "descriptors": [], "spec": {}}, NotFoundError),
        ("mount_share", {"kind": "nfs", "tag": "x"}, VmError),
        ("create", {"container": "c1", "process": 1, "descriptors": [], "nodes": []}, VmError),
        ("reserve_hugepages", {"kib": 7, "count": 1}, VmError),
    ],
)
def test_failed_call_is_answered_with_an_error(
    agent: Agent, method: str, params: dict[str, Any], kind: type[Exception]
) -> None:
    with pytest.raises(kind):
        agent.ask(method, **params)


def test_missing_program_is_an_error(agent: Agent) -> None:
    with pytest.raises(CommandError, match=r'exec: "/none": executable file not found in \$PATH') as caught:
        agent.call(
            "create", container="c1", process=1, joins={}, spec={"process": {"args": ["/none"]}}, devices=[],
            descriptors=[],
        )  # fmt: skip
    assert caught.value.exit_code == 127


def test_failed_exec_leaves_the_container_usable(agent: Agent) -> None:
    create(agent, "exec sleep 1000")
    agent.call("start", container="c1")
    with pytest.raises(CommandError):
        execute(agent, 2, {"args": ["/none"]})
    execute(agent, 3, shell("echo fine"))
    assert agent.output_until_exit(3)[0][1] == b"fine\n"


def test_exec_before_the_start_is_refused(agent: Agent) -> None:
    create(agent, "true")
    with pytest.raises(StateError, match="container not running"):
        execute(agent, 2, shell("true"))


@pytest.mark.parametrize(
    "noise",
    [
        b"nonsense that is no frame at all",
        HEADER.pack(0, 1, 2**31),
        encode(0, EVENT, b"{}"),
        encode(STREAMS * 77, DATA, b"x"),
        encode(0, 1, b'{"id": 1}'),
        encode_call(1, "exec", {"process": 1, "descriptors": ["out"] * (MAX_PRESERVED + 1)}),
        encode_call(1, "exec", {"process": 1, "descriptors": ["sideways"]}),
    ],
)
def test_violation_of_the_protocol_ends_the_agent(agent: Agent, noise: bytes) -> None:
    agent.port.send(noise)
    with pytest.raises(StopIteration):
        while True:
            next(agent.frames)
    assert "LinkError" in agent.wait()


def test_stdin_beyond_the_credit_ends_the_agent(agent: Agent) -> None:
    create(agent, "sleep 1000")
    piece = bytes(65536)
    with pytest.raises((StopIteration, LinkError)):
        for _ in range(WINDOW // len(piece) + 20):
            agent.write(1, piece, end=False)
        while True:
            next(agent.frames)
    assert "bytes received with a credit of" in agent.wait()
