"""Name servers on the loopback of the sandbox's network namespace, which programs of a guest ask through the agent."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from hawse.agent.machine.network import raise_loopback
from hawse.host import network_namespace
from hawse.monitor.agent.calls import ServeNames
from hawse.monitor.agent.events import Query
from hawse.monitor.network.announced import Announced
from hawse.monitor.network.host_network import Network
from hawse.monitor.network.name_servers import MOST, NameServers
from hawse.oci.guest.share import Share
from hawse.plan.model import ContainerPlan
from tests.support.agent import Agent
from tests.support.connections import all_ended, live_link
from tests.support.netns import Namespace
from tests.support.patience import patience

SERVER, PORT = "127.0.0.11", 53
MESSAGE = bytes(range(12))


class FakeLink:
    """Records the servers for which the agent would listen."""

    def __init__(self) -> None:
        self.served: list[list[str]] = []

    async def call(self, call: ServeNames, *, seconds: float) -> None:
        assert seconds > 0
        self.served.append(call.servers)


def places(directory: Path) -> dict[str, str]:
    """The directory of the container's resolv.conf."""
    return {"mount0": f"{directory}/mount0"}


def plan(*, destination: str = "/etc/resolv.conf", source: str = "/run/share/mount0", name: str = "mount0") -> Any:
    mounts = [{"destination": "/x", "source": "/run/share/mount1"}, {"destination": destination, "source": source}]
    shares = [Share(name=each, source="/x", is_dir=False, readonly=True) for each in ("mount1", name)]
    return ContainerPlan(
        id="c1", bundle="/b", rootfs="/b/rootfs", oci_version="1.0.2", annotations={}, owner="",
        spec={"mounts": mounts}, plugs=[], nodes=[], hugepages=[], binds=[], network="", sysctls={}, shares=shares,
    )  # fmt: skip


class Guest:
    """Programs in the network namespace of an agent, whose queries reach the servers of the sandbox's namespace."""

    def __init__(self, network: int) -> None:
        self._network = network

    def program(self, kind: socket.SocketKind = socket.SOCK_DGRAM) -> socket.socket:
        """A socket that is connected to the name server and does not block."""

        def connect() -> socket.socket:
            opened = socket.socket(socket.AF_INET, kind)
            opened.connect((SERVER, PORT))
            return opened

        opened = network_namespace.within(self._network, connect)
        opened.setblocking(False)
        return opened


def serve(
    inside: Namespace, directory: Path, act: Callable[[Guest, socket.socket, socket.socket], Awaitable[None]]
) -> None:
    """Call ``act`` with a guest and the sockets of a name server, of UDP and TCP, which do not block."""
    for name in ("state", "run"):
        (directory / name).mkdir()
    (directory / "mount0").write_text(f"nameserver {SERVER}\n")
    udp, tcp = network_namespace.within(inside.fd, bind)
    with udp, tcp, Agent(f"{directory}/run", unshare=("--net",)) as agent:
        asyncio.run(_serve(inside, directory, agent, lambda guest: act(guest, udp, tcp)))


async def _serve(inside: Namespace, directory: Path, agent: Agent, act: Callable[[Guest], Awaitable[None]]) -> None:
    network = Network(inside.path, f"{directory}/state")
    servers = NameServers(plan(), network, places(directory))
    async with live_link(agent) as (link, processes), asyncio.timeout(patience(10)):
        queries = Announced(processes, servers.connect, what="name servers", most=MOST)
        link.on_query = queries.handle
        namespace = os.open(f"/proc/{agent.pid}/ns/net", os.O_RDONLY)
        try:
            network_namespace.within(namespace, raise_loopback)
            await servers.serve(link)
            await act(Guest(namespace))
            await all_ended(processes)
        finally:
            os.close(namespace)
            queries.end()
            servers.end()
            network.close()


def bind() -> tuple[socket.socket, socket.socket]:
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind((SERVER, PORT))
    tcp = socket.create_server((SERVER, PORT))
    udp.setblocking(False)
    tcp.setblocking(False)
    return udp, tcp


async def answer(udp: socket.socket, *, reply: bytes = b"") -> bytes:
    """Answer the next query, by default with the query itself; returns the query."""
    loop = asyncio.get_running_loop()
    query, address = await loop.sock_recvfrom(udp, 65535)
    await loop.sock_sendto(udp, reply or query, address)
    return query


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_socket_in_the_namespace_does_not_block_and_is_not_inherited(
    inside: Namespace, tmp_path: Path, kind: int
) -> None:
    network = Network(inside.path, str(tmp_path))
    with network.make_socket(kind) as opened:
        assert (os.get_blocking(opened.fileno()), os.get_inheritable(opened.fileno())) == (False, False)
        cookie = opened.getsockopt(socket.SOL_SOCKET, 71, 8)  # SO_NETNS_COOKIE
        assert int.from_bytes(cookie, "little") == inside.cookie()
    network.close()


@pytest.mark.parametrize("size", [12, 512, 65507])
def test_query_over_udp_is_answered(inside: Namespace, tmp_path: Path, size: int) -> None:
    async def act(guest: Guest, udp: socket.socket, _tcp: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with guest.program() as program:
            for number in (1, 2):
                query = bytes([number]) * size
                await loop.sock_sendall(program, query)
                assert await answer(udp, reply=b"a" * size) == query
                assert await loop.sock_recv(program, 70_000) == b"a" * size

    serve(inside, tmp_path, act)


def test_queries_at_the_same_time_get_their_own_answers(inside: Namespace, tmp_path: Path) -> None:
    async def act(guest: Guest, udp: socket.socket, _tcp: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        programs = [guest.program() for _ in range(64)]
        for number, program in enumerate(programs):
            await loop.sock_sendall(program, b"query of number %d" % number)
        queries = [await loop.sock_recvfrom(udp, 100) for _ in programs]
        for query, address in reversed(queries):
            await loop.sock_sendto(udp, query + b"!", address)
        for number, program in enumerate(programs):
            assert await loop.sock_recv(program, 100) == b"query of number %d!" % number
            program.close()

    serve(inside, tmp_path, act)


def test_connection_over_tcp_carries_all_bytes_in_both_directions(inside: Namespace, tmp_path: Path) -> None:
    """The server sees several queries, and the program an answer in pieces and the end of the connection."""

    async def act(guest: Guest, _udp: socket.socket, tcp: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with guest.program(socket.SOCK_STREAM) as program:
            await loop.sock_sendall(program, b"\0\x0c" + MESSAGE)
            connection, _ = await loop.sock_accept(tcp)
            with connection:
                assert await receive(connection, 14) == b"\0\x0c" + MESSAGE
                await loop.sock_sendall(connection, b"\xff")
                assert await receive(program, 1) == b"\xff"
                await loop.sock_sendall(program, b"\0\x0c" + MESSAGE)
                assert await receive(connection, 14) == b"\0\x0c" + MESSAGE
                await loop.sock_sendall(connection, b"\xff" + bytes(65535))
            assert await receive(program, 65536) == b"\xff" + bytes(65535)
            assert await loop.sock_recv(program, 1) == b""

    serve(inside, tmp_path, act)


async def receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = await asyncio.get_running_loop().sock_recv(connection, size - len(data))
        assert piece, data
        data += piece
    return data


def test_server_without_tcp_ends_the_connection(inside: Namespace, tmp_path: Path) -> None:
    async def act(guest: Guest, udp: socket.socket, tcp: socket.socket) -> None:
        tcp.close()
        loop = asyncio.get_running_loop()
        for _ in range(MOST + 1):  # those that were refused do not count
            with guest.program(socket.SOCK_STREAM) as program:
                assert await loop.sock_recv(program, 1) == b""
        with guest.program() as program:
            await loop.sock_sendall(program, MESSAGE)
            await answer(udp)
            assert await loop.sock_recv(program, 100) == MESSAGE

    serve(inside, tmp_path, act)


@pytest.mark.parametrize("message", [b"", bytes(11)])
def test_guest_that_sends_a_shorter_message_gets_no_answer(inside: Namespace, tmp_path: Path, message: bytes) -> None:
    """The agent sends none: such a guest has another agent."""
    (tmp_path / "mount0").write_text(f"nameserver {SERVER}\n")

    async def live() -> None:
        loop = asyncio.get_running_loop()
        network = Network(inside.path, str(tmp_path))
        servers = NameServers(plan(), network, places(tmp_path))
        await servers.serve(cast(Any, FakeLink()))
        async with asyncio.timeout(patience(10)):
            with await servers.connect(Query(SERVER, "udp", 1)) as connection:
                await loop.sock_sendall(connection, len(message).to_bytes(2, "big") + message)
                assert await loop.sock_recv(connection, 100) == b""
        with pytest.raises(LookupError):
            await servers.connect(Query("127.0.0.12", "udp", 2))
        network.close()

    asyncio.run(live())


def test_servers_are_announced_once(inside: Namespace, tmp_path: Path) -> None:
    """An engine may change resolv.conf between create and start."""

    async def live() -> None:
        network, link = Network(inside.path, str(tmp_path)), FakeLink()
        servers = NameServers(plan(), network, places(tmp_path))
        for text in ("", "nameserver 10.0.0.1\n", "nameserver 127.0.0.11\n", "nameserver 127.0.0.11\n"):
            (tmp_path / "mount0").write_text(text)
            await servers.serve(cast(Any, link))
        (tmp_path / "mount0").write_text("nameserver 127.0.0.11\nnameserver 127.0.0.12\n")
        await servers.serve(cast(Any, link))
        assert link.served == [["127.0.0.11"], ["127.0.0.12"]]
        network.close()

    asyncio.run(live())


@pytest.mark.parametrize(
    ("changes", "is_found"),
    [
        ({}, True),
        ({"destination": "/etc//resolv.conf/"}, True),
        ({"destination": "/etc/hosts"}, False),
        ({"source": ""}, False),
        ({"source": "/run/share/other"}, False),
        ({"name": "mount2"}, False),
    ],
)
def test_resolv_conf_is_read_from_the_shared_file(tmp_path: Path, changes: dict[str, str], is_found: bool) -> None:
    for name in ("mount0", "mount1", "mount2", "other"):
        (tmp_path / name).write_text(f"nameserver 127.0.0.1{name[-1:].replace('r', '3')}\n")

    async def live() -> None:
        link = FakeLink()
        await NameServers(plan(**changes), Network("", ""), places(tmp_path)).serve(cast(Any, link))
        assert link.served == ([["127.0.0.10"]] if is_found else [])

    asyncio.run(live())


def test_long_resolv_conf_is_read_up_to_64_kib(tmp_path: Path) -> None:
    async def live(before: int) -> list[list[str]]:
        (tmp_path / "mount0").write_text("#" * (before - 1) + "\nnameserver 127.0.0.11\n")
        link = FakeLink()
        await NameServers(plan(), Network("", ""), places(tmp_path)).serve(cast(Any, link))
        return link.served

    assert asyncio.run(live(65000)) == [["127.0.0.11"]]
    assert asyncio.run(live(65536)) == []
