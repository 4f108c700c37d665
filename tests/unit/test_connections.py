"""A connection that is forwarded ends when all that came over it is passed on, however slow its reader is."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from hawse.link.frames import CREDIT, DATA, EOF
from hawse.sandbox.forwards import STREAM, Connection
from hawse.sandbox.guest import GuestLink, Route
from hawse.sandbox.processes import Processes


class Writer:
    """The host's side, which takes nothing more until ``reads`` is set."""

    def __init__(self) -> None:
        self.written = b""
        self.ended = False
        self.reads = asyncio.Event()

    def write(self, data: bytes) -> None:
        self.written += data

    async def drain(self) -> None:
        await self.reads.wait()

    def write_eof(self) -> None:
        self.ended = True


class Link:
    """The guest's, whose agent connects to whatever is asked for."""

    def __init__(self) -> None:
        self.on_exit: Any = None
        self.sent: list[bytes] = []

    def route(self, number: int, sink: Connection) -> Route:
        self.routed = Route(cast(GuestLink, self), number, sink)
        return self.routed

    def send(self, frame: bytes) -> None:
        self.sent.append(frame)

    def forget(self, number: int) -> None:
        assert number == 1

    async def call(self, method: str, _params: dict[str, Any], *, seconds: float) -> None:
        assert (method, seconds) == ("connect", 1)


def test_what_is_not_written_yet_when_the_guest_is_done_is_written() -> None:
    async def live() -> None:
        link, processes, reader, writer = Link(), Processes(seconds=1), asyncio.StreamReader(), Writer()
        processes.begin(cast(GuestLink, link))
        connection = Connection(reader, cast(asyncio.StreamWriter, writer))
        reader.feed_eof()
        connecting = asyncio.create_task(processes.connect(connection, 80))
        await asyncio.sleep(0)
        link.routed.from_guest(STREAM, DATA, b"first ")
        while not writer.written:
            await asyncio.sleep(0)
        link.routed.from_guest(STREAM, DATA, b"second")
        link.routed.from_guest(STREAM, EOF, b"")
        link.on_exit(1, 0)
        for _ in range(20):
            await asyncio.sleep(0)
        assert not connecting.done()
        writer.reads.set()
        await asyncio.wait_for(connecting, 10)
        assert (writer.written, writer.ended) == (b"first second", True)

    asyncio.run(live())


def test_a_guest_that_ends_a_connection_early_holds_up_nobody() -> None:
    """Without the credit that it owes: the host's side has sent more than the guest ever takes."""

    async def live() -> None:
        link, processes, reader, writer = Link(), Processes(seconds=1), asyncio.StreamReader(), Writer()
        processes.begin(cast(GuestLink, link))
        connection = Connection(reader, cast(asyncio.StreamWriter, writer))
        reader.feed_data(bytes(1_000_000))
        connecting = asyncio.create_task(processes.connect(connection, 80))
        while len(link.sent) < 4:
            await asyncio.sleep(0)
        link.on_exit(1, 0)
        await asyncio.wait_for(connecting, 10)
        assert writer.ended
        assert all(frame[4] in (DATA, CREDIT) for frame in link.sent)

    asyncio.run(live())
