"""Ports of a namespace's loopback forwarded by the real agent: connections are whole, and end as a network's do.

With the socket lookup of :mod:`hawse.monitor.network.sk_lookup`.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hawse.host import network_namespace
from hawse.monitor.agent.guest_link import GuestLink
from hawse.monitor.network.forwards import Forwards
from hawse.monitor.processes.processes import Processes
from tests.support.agent import Agent
from tests.support.netns import Namespace
from tests.support.patience import patience

SIZE = 3_000_000
SECONDS = patience(5)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    with Agent(str(tmp_path)) as started:
        yield started


def forwarding(agent: Agent, inside: Namespace, act: Callable[[Forwards, Processes], Awaitable[None]]) -> None:
    """Do something while ports are forwarded; afterwards none is."""

    async def live() -> None:
        reader, writer = await asyncio.open_connection(sock=agent.connection.dup())
        link = GuestLink(reader, writer)
        serving = asyncio.create_task(link.run())
        await link.hello
        processes = Processes(seconds=10)
        processes.begin(link)
        network: Any = SimpleNamespace(namespace=inside.fd)
        forwards = Forwards(network, processes)
        assert forwards.begin() == []
        try:
            async with asyncio.timeout(SECONDS):
                await act(forwards, processes)
        finally:
            forwards.end()
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
            writer.close()

    asyncio.run(live())
    with pytest.raises(ConnectionRefusedError):
        dial(inside, 80)


def dial(inside: Namespace, port: int, address: str = "127.0.0.1") -> socket.socket:
    """A connection of a program in the namespace."""
    return network_namespace.within(inside.fd, lambda: socket.create_connection((address, port), timeout=SECONDS))


@contextmanager
def serving(act: Callable[[socket.socket], None], address: str = "127.0.0.1") -> Iterator[int]:
    """A server of the agent's, each connection in a thread; its port."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as listening, ExitStack() as stack:

        def accept() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                connection.settimeout(SECONDS)
                thread = threading.Thread(target=act, args=(connection,))
                stack.callback(thread.join)
                thread.start()

        accepting = threading.Thread(target=accept)
        stack.callback(accepting.join)
        accepting.start()
        try:
            yield listening.getsockname()[1]
        finally:
            listening.shutdown(socket.SHUT_RDWR)


def receive(connection: socket.socket) -> bytes:
    """All of it, to the end."""
    data = b""
    while piece := connection.recv(65536):
        data += piece
    return data


def digest_and_answer(connection: socket.socket) -> None:
    """Reads to the end, and then answers with what came and much more."""
    with connection:
        connection.sendall(hashlib.sha256(receive(connection)).digest() + bytes(SIZE))


def exchange(inside: Namespace, port: int, address: str) -> None:
    data = os.urandom(SIZE)
    with dial(inside, port, address) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        assert receive(connection) == hashlib.sha256(data).digest() + bytes(SIZE)


@pytest.mark.parametrize("server", ["127.0.0.1", "::1"])
def test_what_is_sent_arrives_both_ways_in_many_connections(agent: Agent, inside: Namespace, server: str) -> None:
    """To a server of either family, as engines try one and then the other."""

    async def act(_: Forwards, __: Processes) -> None:
        with serving(digest_and_answer, server) as port:
            for _round in range(2):
                dialled = [asyncio.to_thread(exchange, inside, port, ip) for ip in ("127.0.0.1", "::1") * 3]
                await asyncio.gather(*dialled)

    forwarding(agent, inside, act)


def test_more_at_once_than_there_may_be_wait(agent: Agent, inside: Namespace) -> None:
    async def act(_: Forwards, processes: Processes) -> None:
        gate = threading.Event()

        def hold(connection: socket.socket) -> None:
            with connection:
                gate.wait(SECONDS)
                connection.sendall(b"done")

        with serving(hold) as port, ExitStack() as stack:
            dialled = await asyncio.gather(*(asyncio.to_thread(dial, inside, port) for _ in range(80)))
            there = [stack.enter_context(connection) for connection in dialled]
            while processes.connections < 64:
                await asyncio.sleep(0.01)
            for _round in range(1000):  # all are in the backlog: the loop could accept one in each of its rounds
                await asyncio.sleep(0)
            assert processes.connections == 64
            gate.set()
            for connection in there:
                connection.shutdown(socket.SHUT_WR)
            assert await asyncio.gather(*(asyncio.to_thread(receive, each) for each in there)) == [b"done"] * 80

    forwarding(agent, inside, act)


def test_descriptors_that_are_used_up_for_a_while_are_waited_for(
    agent: Agent, inside: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def act(_: Forwards, __: Processes) -> None:
        loop = asyncio.get_running_loop()
        accept, failures = loop.sock_accept, iter([errno.EMFILE, errno.ENFILE])

        async def accept_at_last(listening: socket.socket) -> tuple[socket.socket, Any]:
            if (failure := next(failures, 0)) != 0:
                raise OSError(failure, os.strerror(failure))
            return await accept(listening)

        monkeypatch.setattr(loop, "sock_accept", accept_at_last)
        with serving(digest_and_answer) as port:
            await asyncio.to_thread(exchange, inside, port, "127.0.0.1")
        assert next(failures, 0) == 0

    forwarding(agent, inside, act)


def test_a_port_that_nobody_listens_at_is_an_error(agent: Agent, inside: Namespace) -> None:
    async def act(_: Forwards, __: Processes) -> None:
        with serving(digest_and_answer) as port:
            pass
        with dial(inside, port) as connection, pytest.raises(ConnectionResetError):
            await asyncio.to_thread(connection.recv, 1)

    forwarding(agent, inside, act)


def test_other_addresses_of_the_loopback_are_left_alone(agent: Agent, inside: Namespace) -> None:
    """Docker's name server is at one."""

    async def act(_: Forwards, __: Processes) -> None:
        with pytest.raises(ConnectionRefusedError):
            dial(inside, 53, "127.0.0.11")

    forwarding(agent, inside, act)


def test_who_dials_and_goes_leaves_nothing(agent: Agent, inside: Namespace) -> None:
    """The server, which writes more than anything between can hold, is told, and no descriptor stays open."""

    async def act(_: Forwards, processes: Processes) -> None:
        ended = threading.Semaphore(0)

        def flood(connection: socket.socket) -> None:
            with connection:
                try:
                    while True:
                        connection.sendall(bytes(65536))
                except OSError:
                    ended.release()

        with serving(flood) as port:
            for round_ in range(6):
                connection = dial(inside, port)
                assert await asyncio.to_thread(connection.recv, 1)
                if round_ % 2:  # an error, in place of an end: socket(7), SO_LINGER
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.close()
                assert await asyncio.to_thread(ended.acquire, timeout=SECONDS)
                if round_ == 0:
                    await settled(processes)
                    before = len(os.listdir(f"/proc/{agent.pid}/fd"))
            await settled(processes)
            assert len(os.listdir(f"/proc/{agent.pid}/fd")) == before

    forwarding(agent, inside, act)


async def settled(processes: Processes) -> None:
    """The agent has told the end of every connection."""
    while processes.connections:
        await asyncio.sleep(0.01)


def test_who_does_not_read_holds_up_nobody_else(agent: Agent, inside: Namespace) -> None:
    async def act(_: Forwards, __: Processes) -> None:
        with serving(digest_and_answer) as port, dial(inside, port) as slow:
            slow.sendall(b"x")
            slow.shutdown(socket.SHUT_WR)
            await asyncio.to_thread(exchange, inside, port, "127.0.0.1")
            received = await asyncio.to_thread(receive, slow)
            assert received == hashlib.sha256(b"x").digest() + bytes(SIZE)

    forwarding(agent, inside, act)


def test_a_loopback_that_cannot_be_taken_is_told_of() -> None:
    nothing = os.open("/dev/null", os.O_RDONLY)
    try:
        network: Any = SimpleNamespace(namespace=nothing)
        [(level, words)] = Forwards(network, Processes(seconds=1)).begin()
    finally:
        os.close(nothing)
    assert level == "warning"
    assert words.startswith("ports of this pod cannot be forwarded: its loopback on the host cannot be taken: ")


def test_the_sandboxs_end_is_theirs(agent: Agent, inside: Namespace) -> None:
    async def act(forwards: Forwards, processes: Processes) -> None:
        with serving(lambda connection: connection.close()) as port:
            pass
        with socket.create_server(("127.0.0.1", port)) as listening, dial(inside, port) as connection:
            accepted, _ = await asyncio.to_thread(listening.accept)
            with accepted:
                processes.end(255)
                forwards.end()
                with pytest.raises(ConnectionResetError):
                    await asyncio.to_thread(connection.recv, 1)

    forwarding(agent, inside, act)
