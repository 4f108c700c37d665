"""Connections of programs through a sandbox: servers, exchanged data, and a live link to a real agent."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager

from hawse.monitor.agent.guest_link import GuestLink
from hawse.monitor.processes.process_table import Processes
from tests.support.agent import Agent
from tests.support.patience import patience
from tests.support.processes import is_asleep

#: More than all buffers between the two ends can hold, in bytes.
SIZE = 3_000_000
SECONDS = patience(5)


@asynccontextmanager
async def live_link(agent: Agent) -> AsyncIterator[tuple[GuestLink, Processes]]:
    """The link of a monitor to an agent, running, and its processes."""
    reader, writer = await asyncio.open_connection(sock=agent.connection.dup())
    link = GuestLink(reader, writer)
    running = asyncio.create_task(link.run())
    await link.hello
    processes = Processes(seconds=10)
    processes.begin(link)
    try:
        yield link, processes
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        writer.close()


async def all_ended(processes: Processes) -> None:
    """Wait until the agent has reported the end of every connection."""
    while processes.connections:
        await asyncio.sleep(0.01)


async def prove_limit(agent: Agent, processes: Processes, count: int) -> None:
    """Wait until there are ``count`` connections, and assert that no further client is accepted.

    These clients are in the listen backlog. So this process could accept one in each round of its event loop, and the
    agent would if one of its threads were not asleep. A call of this process may wake a thread, so check again.
    """
    asleep = False
    while not asleep:
        while processes.connections < count or not is_asleep(agent.pid):
            await asyncio.sleep(0.01)
        for _round in range(1000):
            await asyncio.sleep(0)
        asleep = is_asleep(agent.pid)
    assert processes.connections == count


@contextmanager
def accepting(listening: socket.socket, act: Callable[[socket.socket], None]) -> Iterator[None]:
    """Accept connections of a listening socket, which is closed at the end, and call ``act`` for each in a thread."""
    with listening, ExitStack() as stack:

        def accept() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                connection.settimeout(SECONDS)
                thread = threading.Thread(target=act, args=(connection,))
                thread.start()
                stack.callback(thread.join)

        thread = threading.Thread(target=accept)
        stack.callback(thread.join)
        thread.start()
        try:
            yield
        finally:
            listening.shutdown(socket.SHUT_RDWR)


def receive(connection: socket.socket) -> bytes:
    """Receive until the other side has ended its stream."""
    data = b""
    while piece := connection.recv(65536):
        data += piece
    return data


def digest_and_answer(connection: socket.socket) -> None:
    """A server: receive to the end, then send the digest of the data and SIZE more bytes."""
    with connection:
        connection.sendall(hashlib.sha256(receive(connection)).digest() + bytes(SIZE))


def exchange(connection: socket.socket) -> None:
    """A client of :func:`digest_and_answer`: SIZE bytes arrive there, and the whole answer arrives here."""
    data = os.urandom(SIZE)
    with connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        assert receive(connection) == hashlib.sha256(data).digest() + bytes(SIZE)
