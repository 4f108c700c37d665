"""A forwarded connection ends when all of its data was passed on, even if its reader is slow."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import cast

import pytest

from hawse.errors import VmError
from hawse.link.flow import WINDOW, encode_credit
from hawse.link.frames import CREDIT, DATA, EOF, MAX_DATA, encode
from hawse.link.streams import STREAMS
from hawse.monitor.agent.guest_link import GuestLink
from hawse.monitor.processes.connection import STREAM, Connection
from hawse.monitor.processes.process_table import Processes
from tests.support import virtual_time
from tests.support.async_wait import until
from tests.support.fake_connection import FakeWriter, RoutedLink
from tests.support.patience import patience
from tests.support.pods import settle


def test_pending_data_is_written_after_the_guest_has_ended() -> None:
    async def live() -> None:
        link, processes, reader, writer = RoutedLink(), Processes(seconds=1), asyncio.StreamReader(), FakeWriter()
        processes.begin(cast(GuestLink, link))
        connection = Connection(reader, cast(asyncio.StreamWriter, writer))
        reader.feed_eof()
        connecting = asyncio.create_task(processes.connect(connection, 80))
        await asyncio.sleep(0)
        link.routed.from_guest(STREAM, DATA, b"first ")
        await until(lambda: writer.written == b"first ")
        link.routed.from_guest(STREAM, DATA, b"second")
        link.routed.from_guest(STREAM, EOF, b"")
        link.on_exit(1, 0)
        await settle()
        assert not connecting.done()
        writer.reads.set()
        await asyncio.wait_for(connecting, patience(3))
        assert (writer.written, writer.ended) == (b"first second", True)

    virtual_time.run(live())


def test_connection_that_the_guest_ends_early_does_not_block_others() -> None:
    """It does not return credit: the host's side has sent more than the guest ever accepts."""

    async def live() -> None:
        link, processes, reader, writer = RoutedLink(), Processes(seconds=1), asyncio.StreamReader(), FakeWriter()
        processes.begin(cast(GuestLink, link))
        connection = Connection(reader, cast(asyncio.StreamWriter, writer))
        reader.feed_data(bytes(1_000_000))
        connecting = asyncio.create_task(processes.connect(connection, 80))
        await until(lambda: len(link.sent) == 4)
        link.on_exit(1, 0)
        await asyncio.wait_for(connecting, patience(3))
        assert writer.ended
        assert all(frame[4] in (DATA, CREDIT) for frame in link.sent)

    virtual_time.run(live())


class Connected:
    """A connection to port 80 of the guest that is being opened."""

    def __init__(self, link: RoutedLink) -> None:
        self.link, self.reader, self.writer = link, asyncio.StreamReader(), FakeWriter()
        self.writer.reads.set()
        self.processes = Processes(seconds=1)
        self.processes.begin(cast(GuestLink, link))
        self.connection = Connection(self.reader, cast(asyncio.StreamWriter, self.writer))
        self.task = asyncio.create_task(self.processes.connect(self.connection, 80))

    def sent(self, kind: int) -> list[bytes]:
        """The frames of a kind that the guest has received."""
        return [frame for frame in self.link.sent if frame[4] == kind]


def run(act: Callable[[Connected], Awaitable[None]], *, refusal: VmError | None = None) -> None:
    async def live() -> None:
        connected = Connected(RoutedLink(refusal=refusal))
        await settle()
        await act(connected)

    virtual_time.run(live())


def test_connection_from_call_to_end() -> None:
    async def act(connected: Connected) -> None:
        assert connected.link.calls == [("connect", {"process": 1, "port": 80, "descriptors": ["both"]})]
        assert connected.processes.connections == 1
        connected.reader.feed_data(b"request")
        connected.reader.feed_eof()
        connected.link.routed.from_guest(STREAM, DATA, b"answer")
        await settle()
        assert connected.sent(DATA) + connected.sent(EOF) == [
            encode(STREAMS + STREAM, DATA, b"request"), encode(STREAMS + STREAM, EOF)
        ]  # fmt: skip
        assert connected.sent(CREDIT) == [encode(STREAMS + STREAM, CREDIT, encode_credit(6))]
        assert (connected.writer.written, connected.writer.ended) == (b"answer", False)
        connected.link.routed.from_guest(STREAM, EOF, b"")
        await settle()
        assert connected.writer.ended
        assert not connected.task.done(), "the agent has not reported the end"
        connected.link.on_exit(1, 0)
        await connected.task
        assert (connected.processes.connections, connected.link.forgotten) == (0, [1])

    run(act)


def test_refused_connection_is_forgotten() -> None:
    async def act(connected: Connected) -> None:
        with pytest.raises(VmError, match="nobody listens"):
            await connected.task
        assert (connected.processes.connections, connected.link.forgotten) == (0, [1])
        assert connected.link.sent == []

    run(act, refusal=VmError("nobody listens"))


@pytest.mark.parametrize("cause", ["cancelled", "broken"])
def test_connection_that_the_host_ends_is_disconnected_in_the_guest(cause: str) -> None:
    """Later output of the server is dropped. The stream is forgotten when the agent reports the end."""

    async def act(connected: Connected) -> None:
        if cause == "cancelled":
            connected.task.cancel()
        else:
            connected.reader.set_exception(ConnectionResetError())
        with pytest.raises((asyncio.CancelledError, ConnectionResetError)):
            await connected.task
        await settle()
        assert connected.link.calls[1:] == [("disconnect", {"process": 1})]
        assert (connected.processes.connections, connected.link.forgotten) == (1, [])
        connected.link.routed.from_guest(STREAM, DATA, bytes(WINDOW // 4))
        assert connected.sent(CREDIT) == [encode(STREAMS + STREAM, CREDIT, encode_credit(WINDOW // 4))]
        connected.link.on_exit(1, 0)
        assert (connected.processes.connections, connected.link.forgotten) == (0, [1])

    run(act)


@pytest.mark.parametrize("refusal", [None, VmError("nobody listens")])
def test_cancellation_waits_for_the_guests_answer(refusal: VmError | None) -> None:
    async def live() -> None:
        link = RoutedLink(refusal=refusal)
        link.gate.clear()
        connected = Connected(link)
        await settle()
        connected.task.cancel()
        await settle()
        assert not connected.task.done()
        link.gate.set()
        with pytest.raises(asyncio.CancelledError):
            await connected.task
        await settle()
        assert [method for method, _ in link.calls] == ["connect", *([] if refusal else ["disconnect"])]
        assert connected.processes.connections == (0 if refusal else 1)

    virtual_time.run(live())


def test_host_sends_no_more_than_the_guest_gives_credit_for() -> None:
    async def act(connected: Connected) -> None:
        connected.reader.feed_data(bytes(WINDOW + 100))
        await settle()
        assert sum(len(frame) - 9 for frame in connected.sent(DATA)) == WINDOW
        assert max(len(frame) - 9 for frame in connected.sent(DATA)) == MAX_DATA
        connected.link.routed.from_guest(STREAM, CREDIT, encode_credit(30))
        await settle()
        assert sum(len(frame) - 9 for frame in connected.sent(DATA)) == WINDOW + 30
        connected.link.routed.from_guest(STREAM, CREDIT, encode_credit(1000))
        await settle()
        assert sum(len(frame) - 9 for frame in connected.sent(DATA)) == WINDOW + 100
        connected.task.cancel()

    run(act)


@pytest.mark.parametrize("stream", [0, 1, 2])
def test_frames_of_other_streams_are_dropped(stream: int) -> None:
    async def act(connected: Connected) -> None:
        kind, payload = (CREDIT, encode_credit(1)) if stream == 0 else (DATA, b"x")
        connected.connection.send(stream, kind, payload)
        await settle()
        assert connected.writer.written == b""
        assert connected.link.sent == []
        connected.task.cancel()

    run(act)


def test_all_connections_end_with_the_sandbox() -> None:
    async def act(connected: Connected) -> None:
        connected.processes.end(255, container="c1")
        assert connected.processes.connections == 1
        connected.processes.end(255)
        await settle()
        assert (connected.processes.connections, connected.writer.aborted) == (0, True)
        assert connected.writer.options == [(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))]
        connected.reader.feed_eof()
        await connected.task

    run(act)


async def connect(connected: Connected) -> tuple[int, asyncio.Task[None]]:
    """Open one more connection; its number, and the task that ends with it."""
    reader, writer = asyncio.StreamReader(), FakeWriter()
    connection = Connection(reader, cast(asyncio.StreamWriter, writer))
    task = asyncio.create_task(connected.processes.connect(connection, 80))
    await settle()
    return connected.link.calls[-1][1]["process"], task


def test_number_of_an_ended_connection_is_used_again() -> None:
    """Every name query is a connection: numbers that are used once would run out."""

    async def act(connected: Connected) -> None:
        second, other = await connect(connected)
        connected.link.on_exit(1, 0)
        connected.reader.feed_eof()
        await connected.task
        third, again = await connect(connected)
        assert (second, third) == (2, 1)
        for task in (other, again):
            task.cancel()

    run(act)


def test_number_is_not_used_again_before_the_guest_has_disconnected() -> None:
    """Otherwise a late call would end the next connection with the number."""

    async def act(connected: Connected) -> None:
        connected.link.gate.clear()
        connected.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connected.task
        connected.link.on_exit(1, 0)
        number, task = await connect(connected)
        assert number == 2
        connected.link.gate.set()
        await settle()
        another, last = await connect(connected)
        assert another == 1
        for opened in (task, last):
            opened.cancel()

    run(act)


def test_connection_that_has_ended_sends_nothing_to_the_next_one_with_its_number() -> None:
    async def act(connected: Connected) -> None:
        route = connected.link.routed
        route.end()
        route.from_proxy(STREAM, DATA, b"late")
        assert connected.link.sent == []
        connected.task.cancel()

    run(act)


def test_sandbox_without_further_numbers_refuses_processes_and_connections() -> None:
    async def act(connected: Connected) -> None:
        connected.processes._newest = 2**31 // STREAMS - 1
        with pytest.raises(VmError, match="the sandbox has had 33554431 processes, which is the maximum"):
            await connected.processes.connect(connected.connection, 80)
        connected.task.cancel()

    run(act)


def test_failure_of_an_ended_connection_does_not_affect_the_next_one_with_its_number() -> None:
    """The guest has ended the connection while its last data is written to a slow program, which is then killed."""

    async def act(connected: Connected) -> None:
        connected.writer.reads.clear()
        connected.link.routed.from_guest(STREAM, DATA, b"last")
        await settle()
        connected.link.on_exit(1, 0)
        number, task = await connect(connected)
        assert number == 1
        connected.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connected.task
        await settle()
        assert [method for method, _ in connected.link.calls] == ["connect", "connect"]
        assert connected.processes.connections == 1
        another, last = await connect(connected)
        assert another == 2
        for opened in (task, last):
            opened.cancel()

    run(act)
