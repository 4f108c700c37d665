"""Terminals of the real agent: size, input, output, further descriptors, and the state after the end."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hawse.link.flow import WINDOW
from hawse.link.frames import CREDIT, DATA, EOF, encode
from hawse.link.streams import STREAMS
from tests.support.agent import Agent


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    with Agent(str(tmp_path)) as started:
        yield started


def create(agent: Agent, script: str, *descriptors: str, name: str = "c1", number: int = 1, **process: Any) -> None:
    spec = {"process": {"args": ["/bin/sh", "-c", script], "cwd": "/", "env": [], **process}}
    agent.call(
        "create", container=name, process=number, descriptors=descriptors, joins={}, devices=[], spec=spec
    )  # fmt: skip
    agent.call("start", container=name)


def output_until(agent: Agent, end: bytes) -> bytes:
    """The output of the terminal until it ends with these bytes."""
    shown = b""
    for stream, kind, payload in agent.everything():
        if kind == DATA and stream == STREAMS + 1:
            shown += payload
            if shown.endswith(end):
                return shown
    raise AssertionError(shown)


def test_size_of_a_terminal_can_be_changed(agent: Agent) -> None:
    script = "stty -echo; stty size; read line; stty size; echo $line >&2; exit 3"
    create(agent, script, terminal=True, consoleSize={"height": 33, "width": 101})
    assert output_until(agent, b"101\r\n") == b"33 101\r\n"
    agent.call("resize", container="c1", process=1, rows=44, columns=120)
    agent.write(1, b"typed\n", end=False)
    assert agent.output_until_exit(1) == ({1: b"44 120\r\ntyped\r\n", 2: b""}, 3)
    assert agent.call("resize", container="c1", process=1, rows=1, columns=1) is None, "it has ended"


def test_terminal_without_a_size_has_the_default_of_the_kernel(agent: Agent) -> None:
    create(agent, "stty size", terminal=True)
    assert agent.output_until_exit(1)[0][1] == b"0 0\r\n"


def test_terminal_of_a_container_with_the_longest_name() -> None:
    """The address of the console socket, which crun connects to, has at most 107 bytes (unix(7))."""
    with tempfile.TemporaryDirectory() as directory, Agent(directory) as agent:
        create(agent, "tty", name="c" * 255, terminal=True)
        assert agent.output_until_exit(1)[0][1].startswith(b"/dev/pts/")
        call = {"args": ["/bin/sh", "-c", "tty"], "cwd": "/", "env": [], "terminal": True}
        create(agent, "exec sleep 1000", name="d" * 255, number=2)
        agent.call("exec", container="d" * 255, process=3, descriptors=[], spec=call)
        assert agent.output_until_exit(3)[0][1].startswith(b"/dev/pts/")


def test_terminal_is_the_controlling_terminal_of_its_process(agent: Agent) -> None:
    create(agent, "echo ready; exec sleep 1000", terminal=True)
    output_until(agent, b"ready\r\n")
    agent.write(1, b"\x03", end=False)
    assert agent.output_until_exit(1)[1] == 130


def test_descriptors_besides_a_terminal_are_pipes(agent: Agent) -> None:
    create(agent, "cat <&3 >&4", "in", "out", terminal=True)
    agent.write(1, b"beside", descriptor=3)
    assert agent.output_until_exit(1) == ({1: b"", 2: b"", 4: b"beside"}, 0)


def test_credit_is_returned_on_the_stream_of_its_descriptor(agent: Agent) -> None:
    create(agent, "cat <&4 >/dev/null", "out", "in")
    agent.write(1, bytes(65536), descriptor=4, end=False)
    assert (STREAMS + 4, CREDIT, (65536).to_bytes(4, "big")) in agent.everything()
    agent.port.send(encode(STREAMS + 4, EOF))
    assert agent.output_until_exit(1)[1] == 0


def test_process_without_a_terminal_has_no_size(agent: Agent) -> None:
    create(agent, "read line; exit 4")
    assert agent.call("resize", container="c1", process=1, rows=1, columns=1) is None
    agent.write(1, b"\n")
    assert agent.output_until_exit(1)[1] == 4


def test_input_after_the_process_closed_stdin_is_dropped_and_credited(agent: Agent) -> None:
    create(agent, "exec <&-; echo closed; exec sleep 1000")
    assert output_until(agent, b"closed\n") == b"closed\n"
    returned = 0
    for _ in range(2 * WINDOW // 65536):
        agent.write(1, bytes(65536), end=False)
        while returned < WINDOW // 4:
            stream, kind, payload = next(agent.everything())
            if (stream, kind) == (STREAMS, CREDIT):
                returned += int.from_bytes(payload, "big")
        returned -= 65536
    agent.call("signal", container="c1", process=1, signal=9, everyone=False)
    assert agent.output_until_exit(1)[1] == 137


def test_process_reads_all_of_a_long_input(agent: Agent) -> None:
    """Input beyond the capacity of a pipe waits for the process; the end of file follows it."""
    create(agent, "read line; wc -c")
    agent.write(1, b"\n", end=False)
    for _ in range(3):
        agent.write(1, bytes(50_000), end=False)
    agent.write(1, bytes(50_000))
    assert agent.output_until_exit(1) == ({1: b"200000\n", 2: b""}, 0)


def test_frames_for_a_process_that_has_ended_are_ignored(agent: Agent) -> None:
    create(agent, "exit 0")
    assert agent.output_until_exit(1)[1] == 0
    for number, kind, payload in ((0, DATA, b"x"), (0, EOF, b""), (1, CREDIT, (1).to_bytes(4, "big"))):
        agent.port.send(encode(STREAMS + number, kind, payload))
    agent.call("trace")
