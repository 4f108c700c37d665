"""Ports of a namespace's loopback, forwarded by the real agent: all data arrives, and connections end as on a network.

This includes the socket lookup of :mod:`hawse.monitor.network.sk_lookup`.
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
from hawse.monitor.network.forwards import Forwards
from hawse.monitor.processes.process_table import Processes
from tests.support.agent import Agent
from tests.support.connections import (
    SECONDS,
    SIZE,
    accepting,
    all_ended,
    digest_and_answer,
    exchange,
    live_link,
    prove_limit,
    receive,
)
from tests.support.netns import Namespace


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    with Agent(str(tmp_path)) as started:
        yield started


def forwarding(agent: Agent, inside: Namespace, act: Callable[[Forwards, Processes], Awaitable[None]]) -> None:
    """Call ``act`` while ports of the namespace's loopback are forwarded; afterwards connections are refused."""

    async def live() -> None:
        network: Any = SimpleNamespace(namespace=inside.fd)
        async with live_link(agent) as (_, processes):
            forwards = Forwards(network, processes)
            assert forwards.begin() == []
            try:
                async with asyncio.timeout(SECONDS):
                    await act(forwards, processes)
            finally:
                forwards.end()

    asyncio.run(live())
    with pytest.raises(ConnectionRefusedError):
        dial(inside, 80)


def dial(inside: Namespace, port: int, address: str = "127.0.0.1") -> socket.socket:
    """Connect from a program in the namespace."""
    return network_namespace.within(inside.fd, lambda: socket.create_connection((address, port), timeout=SECONDS))


def dial_and_exchange(inside: Namespace, port: int, address: str = "127.0.0.1") -> None:
    exchange(dial(inside, port, address))


@contextmanager
def serving(act: Callable[[socket.socket], None], address: str = "127.0.0.1") -> Iterator[int]:
    """Run a server in the agent's network namespace, with a thread for each connection; returns its port."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listening = socket.create_server((address, 0), family=family)
    port = listening.getsockname()[1]
    with accepting(listening, act):
        yield port


@pytest.mark.parametrize("server", ["127.0.0.1", "::1"])
def test_data_arrives_in_both_directions_of_many_connections(agent: Agent, inside: Namespace, server: str) -> None:
    """To a server of either address family: engines try one address, then the other."""

    async def act(_: Forwards, __: Processes) -> None:
        with serving(digest_and_answer, server) as port:
            for _round in range(2):
                addresses = ("127.0.0.1", "::1") * 3
                await asyncio.gather(*(asyncio.to_thread(dial_and_exchange, inside, port, ip) for ip in addresses))

    forwarding(agent, inside, act)


def test_clients_above_the_limit_of_connections_wait(agent: Agent, inside: Namespace) -> None:
    async def act(_: Forwards, processes: Processes) -> None:
        gate = threading.Event()

        def hold(connection: socket.socket) -> None:
            with connection:
                gate.wait(SECONDS)
                connection.sendall(b"done")

        with serving(hold) as port, ExitStack() as stack:
            dialled = await asyncio.gather(*(asyncio.to_thread(dial, inside, port) for _ in range(80)))
            connections = [stack.enter_context(connection) for connection in dialled]
            await prove_limit(agent, processes, 64)
            gate.set()
            for connection in connections:
                connection.shutdown(socket.SHUT_WR)
            assert await asyncio.gather(*(asyncio.to_thread(receive, each) for each in connections)) == [b"done"] * 80

    forwarding(agent, inside, act)


def test_accepting_continues_when_file_descriptors_are_free_again(
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
            await asyncio.to_thread(dial_and_exchange, inside, port)
        assert next(failures, 0) == 0

    forwarding(agent, inside, act)


def test_connection_to_a_closed_port_is_reset(agent: Agent, inside: Namespace) -> None:
    async def act(_: Forwards, __: Processes) -> None:
        with serving(digest_and_answer) as port:
            pass
        with dial(inside, port) as connection, pytest.raises(ConnectionResetError):
            await asyncio.to_thread(connection.recv, 1)

    forwarding(agent, inside, act)


def test_other_addresses_of_the_loopback_are_not_forwarded(agent: Agent, inside: Namespace) -> None:
    """Docker's name server uses such an address."""

    async def act(_: Forwards, __: Processes) -> None:
        with pytest.raises(ConnectionRefusedError):
            dial(inside, 53, "127.0.0.11")

    forwarding(agent, inside, act)


def test_disconnected_clients_leave_no_descriptors(agent: Agent, inside: Namespace) -> None:
    """The server writes more than all buffers can hold. It gets an error, and no descriptor stays open."""

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
                if round_ % 2:  # close with an error instead of an end: socket(7), SO_LINGER
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.close()
                assert await asyncio.to_thread(ended.acquire, timeout=SECONDS)
                if round_ == 0:
                    await all_ended(processes)
                    before = len(os.listdir(f"/proc/{agent.pid}/fd"))
            await all_ended(processes)
            assert len(os.listdir(f"/proc/{agent.pid}/fd")) == before

    forwarding(agent, inside, act)


def test_client_that_does_not_read_does_not_block_others(agent: Agent, inside: Namespace) -> None:
    async def act(_: Forwards, __: Processes) -> None:
        with serving(digest_and_answer) as port, dial(inside, port) as slow:
            slow.sendall(b"x")
            slow.shutdown(socket.SHUT_WR)
            await asyncio.to_thread(dial_and_exchange, inside, port)
            received = await asyncio.to_thread(receive, slow)
            assert received == hashlib.sha256(b"x").digest() + bytes(SIZE)

    forwarding(agent, inside, act)


def test_warning_says_why_a_loopback_cannot_be_forwarded() -> None:
    nothing = os.open("/dev/null", os.O_RDONLY)
    try:
        network: Any = SimpleNamespace(namespace=nothing)
        [(level, words)] = Forwards(network, Processes(seconds=1)).begin()
    finally:
        os.close(nothing)
    assert level == "warning"
    assert words.startswith("ports of this pod cannot be forwarded: cannot listen on its loopback on the host: ")


def test_connections_end_with_the_sandbox(agent: Agent, inside: Namespace) -> None:
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
