"""A hostile agent and the connections that are forwarded to its pod, towards the real monitor.

The client gets an error, or waits until the pod is deleted. The monitor continues or ends the sandbox with a reason.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from hawse.errors import VmError
from hawse.host import network_namespace
from hawse.link import messages
from hawse.link.flow import WINDOW, encode_credit
from hawse.link.frames import CREDIT, DATA, EOF, MAX_DATA, encode
from hawse.link.streams import STREAMS
from hawse.monitor.processes.connection import STREAM
from tests.support.fake_machine import FakeHost
from tests.support.hostile import INIT, Scene, play
from tests.support.netns import Namespace
from tests.support.patience import patience

#: The connection's process, the first after the container's, and its stream.
NUMBER = INIT + 1
BOTH = NUMBER * STREAMS + STREAM
NONSENSE = "protocol violation by the guest agent: link: "
EXIT = messages.encode_event("exit", {"process": NUMBER, "code": 0})


def use(inside: Namespace) -> bytes | None:
    """The bytes that a client of the pod's port receives; None if the connection ends with an error."""
    data = b""
    try:
        with network_namespace.within(
            inside.fd, lambda: socket.create_connection(("127.0.0.1", 80), timeout=patience(5))
        ) as connection:
            while piece := connection.recv(65536):
                data += piece
    except ConnectionError:
        return None
    return data


def forward(
    directory: Path, answer: Callable[[int], bytes], then: Callable[[Scene], Awaitable[None]], *expected: bytes | None
) -> None:
    """Dial a port of the pod, whose agent sends ``answer`` to the call for it. ``then`` runs in the meantime."""

    def prepare(host: FakeHost) -> None:
        host.raw["connect"] = answer

    with Namespace() as inside:

        async def story(scene: Scene) -> None:
            await scene.start()
            using = asyncio.create_task(asyncio.to_thread(use, inside))
            await scene.called("connect")
            await then(scene)
            assert await using in expected

        play(directory, inside.path, story, prepare=prepare, pod=True)


def accepted(number: int) -> bytes:
    return messages.encode_result(number, None)


def refused(number: int) -> bytes:
    return messages.encode_error(number, VmError("\x1b[2J"))


def unanswered(_number: int) -> bytes:
    return b""


DATA_AND_END = encode(BOTH, DATA, b"x") + encode(BOTH, EOF) + EXIT
GOES_ON: dict[str, tuple[Callable[[int], bytes], bytes | None]] = {
    "is refused": (refused, None),
    "is refused after its data": (lambda number: DATA_AND_END + refused(number), None),
    "is accepted and answers": (lambda number: accepted(number) + DATA_AND_END, b"x"),
    "ends before it is accepted": (lambda number: EXIT + accepted(number) + EXIT, b""),
    "ends twice": (lambda number: accepted(number) + EXIT * 2, b""),
    "has data on stdout and stderr": (
        lambda number: accepted(number) + encode(BOTH - 1, DATA, b"y") + encode(BOTH - 2, DATA, b"z") + DATA_AND_END,
        b"x",
    ),
    "has data after its end": (
        lambda number: accepted(number) + encode(BOTH, EOF) + EXIT + encode(BOTH, DATA, b"x"),
        b"",
    ),
}
WAITS = {"is never answered": unanswered, "is accepted, and nothing follows": accepted}
VIOLATES = {
    "data without credit": (encode(BOTH, DATA, bytes(MAX_DATA)) * (WINDOW // MAX_DATA + 1), "65536 bytes sent with a"),
    "credit without data": (encode(BOTH, CREDIT, encode_credit(1)), "credit of 1 bytes"),
    "data of the next connection": (encode(BOTH + STREAMS, DATA, b"x"), "frame for the unknown stream"),
    "two ends of the stream": (encode(BOTH, EOF) * 2, f"the guest sent data on stream {STREAM}"),
}


@pytest.mark.parametrize("name", GOES_ON)
def test_connection_that_the_agent_ends_does_not_affect_others(tmp_path: Path, name: str) -> None:
    answer, expected = GOES_ON[name]

    async def then(scene: Scene) -> None:
        await scene.prove_running()

    forward(tmp_path, answer, then, expected)


@pytest.mark.parametrize("name", WAITS)
def test_connection_that_never_ends_is_reset_when_the_pod_is_deleted(tmp_path: Path, name: str) -> None:
    async def then(scene: Scene) -> None:
        await scene.prove_running()
        await scene.prove_deletable()

    forward(tmp_path, WAITS[name], then, None)


@pytest.mark.parametrize("name", VIOLATES)
def test_connection_that_breaks_the_protocol_ends_the_sandbox(tmp_path: Path, name: str) -> None:
    frames, reason = VIOLATES[name]

    async def then(scene: Scene) -> None:
        await scene.prove_ended(NONSENSE + reason)

    # In this order: once the call is answered, the monitor returns credit. An EOF may arrive before the reset.
    forward(tmp_path, lambda number: frames + accepted(number), then, None, b"")
