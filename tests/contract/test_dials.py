"""Connections from the guest to sockets of the host, by the real agent: all data arrives, the number of connections is
limited, and connections are refused when nobody listens on the host."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from hawse.errors import LinkError
from hawse.link import messages
from hawse.link.streams import STDIO
from hawse.monitor.agent.calls import Create, Delete, GuestSocket
from hawse.monitor.agent.events import Dial
from hawse.monitor.agent.guest_link import GuestLink
from hawse.monitor.network.announced import Announced
from hawse.monitor.network.host_sockets import HostSockets
from hawse.monitor.processes.process_table import Processes
from tests.support.agent import Agent
from tests.support.connections import (
    SECONDS,
    accepting,
    all_ended,
    digest_and_answer,
    exchange,
    live_link,
    prove_limit,
    receive,
)

#: A specification that is sufficient for the fake crun.
SPEC = {"process": {"args": ["/bin/true"], "cwd": "/"}, "linux": {}}


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    (tmp_path / "run").mkdir()
    with Agent(f"{tmp_path}/run") as started:
        yield started


@contextmanager
def serving(path: str, act: Callable[[socket.socket], None]) -> Iterator[None]:
    """Run a server of the host, with a thread for each connection."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen(128)
    with accepting(listening, act):
        yield


def dial(path: str) -> socket.socket:
    """Connect from a program in the container."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(SECONDS)
    connection.connect(path)
    return connection


def forwarding(agent: Agent, host: Path, act: Callable[[Processes, str, list[int]], Awaitable[None]]) -> None:
    """Call ``act`` while connections to the socket "api" of the container c1 are forwarded to a socket of the host.

    It gets the processes, the path of the socket "api", and the numbers of the connections that the agent announces.
    Afterwards the sockets of the container must be gone.
    """

    async def live() -> None:
        announced: list[int] = []
        async with live_link(agent) as (link, processes):
            sockets_of_host = HostSockets(lambda container, name: os.open(f"{host}/{container}-{name}", os.O_PATH))
            dials = Announced(processes, sockets_of_host.connect, what="sockets of the host", most=64)

            def take(dial: Dial) -> None:
                announced.append(dial.connection)
                dials.handle(dial)

            link.on_dial = take
            route = link.route(1, cast(Any, NoProxy()))
            sockets = [
                GuestSocket(name="api", mode=0o660, uid=7, gid=8),
                GuestSocket(name="other", mode=0o666, uid=0, gid=0),
            ]
            call = Create(container="c1", process=1, descriptors=[], spec=SPEC, devices=[], sockets=sockets)
            processes._newest = 1
            await link.call(call, seconds=SECONDS)
            try:
                async with asyncio.timeout(SECONDS):
                    await act(processes, f"{agent.directory}/sockets/c1/api", announced)
                    await all_ended(processes)
                await link.call(Delete(container="c1"), seconds=SECONDS)
                assert not os.path.exists(f"{agent.directory}/sockets/c1")
            finally:
                dials.end()
                route.discard()

    asyncio.run(live())


class NoProxy:
    """The proxy of the container's first process: it ignores everything."""

    directions: tuple[str, ...] = STDIO

    def send(self, _stream: int, _kind: int, _payload: bytes) -> None:
        return

    def exit(self, _code: int) -> None:
        return


def test_data_arrives_in_both_directions_and_socket_has_mode_and_owner(agent: Agent, tmp_path: Path) -> None:
    async def act(_: Processes, path: str, __: list[int]) -> None:
        status = os.stat(path)
        assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o660, 7, 8)
        with serving(f"{tmp_path}/c1-api", digest_and_answer):
            for _round in range(2):
                await asyncio.gather(*(asyncio.to_thread(lambda: exchange(dial(path))) for _ in range(5)))

    forwarding(agent, tmp_path, act)


def test_clients_above_the_limit_of_connections_wait(agent: Agent, tmp_path: Path) -> None:
    async def act(processes: Processes, path: str, announced: list[int]) -> None:
        gate = threading.Event()

        def hold(connection: socket.socket) -> None:
            with connection:
                gate.wait(SECONDS)
                connection.sendall(b"done")

        with serving(f"{tmp_path}/c1-api", hold), ExitStack() as stack:
            connections = [stack.enter_context(dial(path)) for _ in range(80)]
            await prove_limit(agent, processes, 64)
            assert len(announced) == 64
            gate.set()
            for each in connections:  # in the order in which they are accepted
                assert await asyncio.to_thread(receive, each) == b"done"
                each.close()

    forwarding(agent, tmp_path, act)


def test_connection_ends_when_nobody_listens_on_the_host(agent: Agent, tmp_path: Path) -> None:
    """Repeated more often than the limit of connections: refused connections must not count."""

    async def act(processes: Processes, path: str, __: list[int]) -> None:
        for place in (path, path.replace("api", "other")):
            for _ in range(70):
                with dial(place) as connection:
                    assert await asyncio.to_thread(receive, connection) == b""
        assert processes.connections == 0

    gone = socket.socket(socket.AF_UNIX)
    gone.bind(f"{tmp_path}/c1-api")
    gone.close()
    forwarding(agent, tmp_path, act)


@pytest.mark.parametrize("end", ["server", "client"])
def test_end_of_one_side_is_the_end_of_the_other(agent: Agent, tmp_path: Path, end: str) -> None:
    ended = threading.Event()

    def serve(connection: socket.socket) -> None:
        with connection:
            connection.sendall(b"hello")
            if end == "client":
                assert receive(connection) == b""
                ended.set()

    async def act(_: Processes, path: str, __: list[int]) -> None:
        with serving(f"{tmp_path}/c1-api", serve), dial(path) as connection:
            assert await asyncio.to_thread(connection.recv, 5) == b"hello"
            if end == "server":
                assert await asyncio.to_thread(receive, connection) == b""
            else:
                connection.close()
                assert await asyncio.to_thread(ended.wait, SECONDS)

    forwarding(agent, tmp_path, act)


def test_agent_that_announces_too_many_connections_is_refused() -> None:
    async def live() -> None:
        connect = HostSockets(lambda _container, _name: -1).connect
        dials = Announced(Processes(seconds=1), connect, what="sockets of the host", most=64)
        for number in range(64):
            dials.handle(Dial("c1", "api", number))
        with pytest.raises(LinkError, match="more than 64 connections to sockets of the host"):
            dials.handle(Dial("c1", "api", 64))
        dials.end()

    asyncio.run(live())


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"container": None}, "container: Expected `str`, got `null`"),
        ({"container": 1}, "container: Expected `str`, got `int`"),
        ({"socket": None}, "socket: Expected `str`, got `null`"),
        ({"connection": "1"}, "connection: Expected `int`, got `str`"),
        ({"connection": True}, "connection: Expected `int`, got `bool`"),
        ({"connection": 0}, "connection: Expected `int` >= 1"),
        ({"connection": 2**53}, "connection: Expected `int` <= 9007199254740991"),
        ({"connection": 2**64}, "connection: Expected `int` <= 9007199254740991"),
        (None, "Object missing required field `container`"),
    ],
)
def test_malformed_announcement_ends_the_link(changes: dict[str, object] | None, refusal: str) -> None:
    async def live() -> str:
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=ours)
        link = GuestLink(reader, writer)
        event = {} if changes is None else {"container": "c1", "socket": "a", "connection": 1} | changes
        theirs.sendall(messages.encode_event("dial", event))
        await link.run()
        theirs.close()
        writer.close()
        return link.ended.result().message

    assert asyncio.run(live()).endswith(f"link: the event dial is unusable: {refusal}")
