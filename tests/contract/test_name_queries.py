"""Name queries of a guest, sent to a server on the loopback of the sandbox's network namespace."""

from __future__ import annotations

import asyncio
import base64
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal, cast

import pytest

from hawse.host import network_namespace
from hawse.monitor.agent.calls import AnswerName, ServeNames
from hawse.monitor.agent.events import Query
from hawse.monitor.network.host_network import Network
from hawse.monitor.network.resolver import Resolver
from hawse.oci.guest.share import Share
from hawse.plan.model import ContainerPlan
from tests.support.netns import Namespace
from tests.support.patience import patience

SERVER, PORT = "127.0.0.11", 53
MESSAGE = bytes(range(12))


class FakeLink:
    """A guest: ``answers`` are the names that were reported to it. It may fail."""

    def __init__(self) -> None:
        self.on_query: Callable[[Query], None] = lambda _query: None
        self.served: list[list[str]] = []
        self.answers: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()

    async def call(self, call: ServeNames | AnswerName, *, seconds: float) -> None:
        assert seconds > 0
        if isinstance(call, ServeNames):
            self.served.append(call.servers)
        else:
            self.answers.put_nowait((call.number, base64.b64decode(call.message)))

    def ask(
        self, number: int, *, server: str = SERVER, transport: Literal["udp", "tcp"] = "udp", message: bytes = MESSAGE
    ) -> None:
        self.on_query(Query(number, server, transport, base64.b64encode(message).decode()))


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


def serve(
    inside: Namespace, directory: Path, act: Callable[[FakeLink, socket.socket, socket.socket], Awaitable[None]]
) -> None:
    """Call ``act`` with a guest and with the non-blocking UDP and TCP sockets of a server."""
    (directory / "mount0").write_text(f"nameserver {SERVER}\n")
    (directory / "state").mkdir()

    async def live() -> None:
        network = Network(inside.path, str(directory / "state"))
        udp, tcp = network_namespace.within(inside.fd, bind)
        try:
            with udp, tcp:
                link = FakeLink()
                await Resolver(plan(), network, places(directory)).serve(cast(Any, link))
                assert link.served == [[SERVER]]
                async with asyncio.timeout(patience(10)):
                    await act(link, udp, tcp)
        finally:
            network.close()

    asyncio.run(live())


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


def test_query_over_udp(inside: Namespace, tmp_path: Path) -> None:
    async def act(link: FakeLink, udp: socket.socket, _tcp: socket.socket) -> None:
        for number in (1, 2):
            link.ask(number, message=MESSAGE + bytes([number]))
            assert await answer(udp, reply=b"answer") == MESSAGE + bytes([number])
            assert await link.answers.get() == (number, b"answer")

    serve(inside, tmp_path, act)


@pytest.mark.parametrize(
    ("pieces", "reply", "more"),
    [([1, 1, 3], 260, b""), ([2, 300], 260, b"not of this answer"), ([5], 260, b""), ([1], 0, b"")],
)
def test_query_over_tcp(inside: Namespace, tmp_path: Path, pieces: list[int], reply: int, more: bytes) -> None:
    """The answer begins with its length, and may arrive in pieces. The server does not close the connection."""

    async def act(link: FakeLink, _udp: socket.socket, tcp: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        link.ask(7, transport="tcp")
        connection, _ = await loop.sock_accept(tcp)
        with connection:
            assert await loop.sock_recv(connection, 100) == b"\0\x0c" + MESSAGE
            expected = (bytes(range(256)) + b"more")[:reply]
            framed = len(expected).to_bytes(2, "big") + expected + more
            for size in [*pieces, len(framed)]:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await loop.sock_sendall(connection, framed[:size])
                framed = framed[size:]
                for _ in range(20):
                    await asyncio.sleep(0)
            assert await link.answers.get() == (7, expected)

    serve(inside, tmp_path, act)


@pytest.mark.parametrize("sent", [b"", b"\0", b"\0\x0c" + MESSAGE[:5]])
def test_connection_that_ends_early_has_no_answer(inside: Namespace, tmp_path: Path, sent: bytes) -> None:
    async def act(link: FakeLink, udp: socket.socket, tcp: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        link.ask(7, transport="tcp")
        connection, _ = await loop.sock_accept(tcp)
        with connection:
            await loop.sock_recv(connection, 100)
            await loop.sock_sendall(connection, sent)
            connection.shutdown(socket.SHUT_WR)
            assert await loop.sock_recv(connection, 100) == b"", "it is closed"
        link.ask(8)
        await answer(udp)
        assert await link.answers.get() == (8, MESSAGE)

    serve(inside, tmp_path, act)


def test_unknown_server_and_message_that_is_no_query_are_ignored(inside: Namespace, tmp_path: Path) -> None:
    async def act(link: FakeLink, udp: socket.socket, _tcp: socket.socket) -> None:
        link.ask(1, server="127.0.0.12")
        link.ask(2, message=MESSAGE[:11])
        link.ask(3)
        assert await answer(udp) == MESSAGE
        assert await link.answers.get() == (3, MESSAGE)
        assert link.answers.empty()

    serve(inside, tmp_path, act)


def test_number_of_pending_queries_is_limited(inside: Namespace, tmp_path: Path) -> None:
    """Those beyond 64 are dropped. After an answer another query is accepted."""

    async def act(link: FakeLink, udp: socket.socket, _tcp: socket.socket) -> None:
        before = len(asyncio.all_tasks())
        for number in range(1, 66):
            link.ask(number)
        assert len(asyncio.all_tasks()) - before == 64, "each query that is taken has a task"
        for _ in range(64):
            await answer(udp)
        answered = {(await link.answers.get())[0] for _ in range(64)}
        assert answered == set(range(1, 65))
        link.ask(66)
        await answer(udp)
        assert await link.answers.get() == (66, MESSAGE)

    serve(inside, tmp_path, act)


def test_servers_are_announced_once(inside: Namespace, tmp_path: Path) -> None:
    """An engine may change resolv.conf between create and start."""

    async def live() -> None:
        network, link = Network(inside.path, str(tmp_path)), FakeLink()
        resolver = Resolver(plan(), network, places(tmp_path))
        for text in ("", "nameserver 10.0.0.1\n", "nameserver 127.0.0.11\n", "nameserver 127.0.0.11\n"):
            (tmp_path / "mount0").write_text(text)
            await resolver.serve(cast(Any, link))
        (tmp_path / "mount0").write_text("nameserver 127.0.0.11\nnameserver 127.0.0.12\n")
        await resolver.serve(cast(Any, link))
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
        await Resolver(plan(**changes), Network("", ""), places(tmp_path)).serve(cast(Any, link))
        assert link.served == ([["127.0.0.10"]] if is_found else [])

    asyncio.run(live())


def test_long_resolv_conf_is_read_up_to_64_kib(tmp_path: Path) -> None:
    async def live(before: int) -> list[list[str]]:
        (tmp_path / "mount0").write_text("#" * (before - 1) + "\nnameserver 127.0.0.11\n")
        link = FakeLink()
        await Resolver(plan(), Network("", ""), places(tmp_path)).serve(cast(Any, link))
        return link.served

    assert asyncio.run(live(65000)) == [["127.0.0.11"]]
    assert asyncio.run(live(65536)) == []
