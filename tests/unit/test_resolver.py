"""Name queries that the guest forwards: parsing of resolv.conf and of queries, and delivery of the answers."""

from __future__ import annotations

import asyncio
import base64
import os
import queue
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hawse.agent.streams.resolver import Resolver
from hawse.errors import LinkError
from hawse.link import control
from hawse.monitor.agent.events import Query, read_event
from hawse.monitor.agent.guest_link import GuestLink
from hawse.monitor.network import resolver as hosts
from hawse.monitor.network.host_network import Network
from hawse.monitor.network.resolver import loopback_servers
from hawse.oci.guest.share import Share
from hawse.plan.model import ContainerPlan
from tests.support.patience import patience

MESSAGE = bytes(range(12))
QUERY: dict[str, Any] = {
    "number": 7,
    "server": "127.0.0.11",
    "transport": "udp",
    "message": base64.b64encode(MESSAGE).decode(),
}


@pytest.mark.parametrize(
    ("text", "servers"),
    [
        ("nameserver 127.0.0.11\noptions ndots:0\n", ["127.0.0.11"]),
        ("# Generated\nnameserver 10.0.0.1\nnameserver 127.0.0.53 # stub\nnameserver 127.0.0.53\n", ["127.0.0.53"]),
        ("nameserver ::1\nnameserver 8.8.8.8\nnameserver\nnameserver localhost\n", []),
        ("nameserver 127.0.0.1\nnameserver 127.0.0.2\nnameserver 127.0.0.3\nnameserver 127.0.0.4\n",
         ["127.0.0.1", "127.0.0.2", "127.0.0.3"]),
        ("nameserver 127.1\nnameserver 127.0.0.011\n", []),
    ],
)  # fmt: skip
def test_name_servers_on_the_loopback_are_those_that_the_guest_cannot_reach(text: str, servers: list[str]) -> None:
    assert loopback_servers(text) == servers


@given(st.text())
def test_any_text_can_be_a_resolv_conf(text: str) -> None:
    assert len(loopback_servers(text)) <= 3


def read_query(fields: dict[str, Any]) -> tuple[Query, bytes]:
    """The event of the agent, and its message."""
    query = read_event("query", fields)
    assert isinstance(query, Query)
    return query, query.decode()


def test_query_is_parsed() -> None:
    query, message = read_query(QUERY)
    assert (query.number, query.server, query.transport, message) == (7, "127.0.0.11", "udp", MESSAGE)
    greatest = {"number": 2**53 - 1, "transport": "tcp", "message": base64.b64encode(bytes(65535)).decode()}
    query, message = read_query(QUERY | greatest)
    assert (query.number, query.server, query.transport, message) == (2**53 - 1, "127.0.0.11", "tcp", bytes(65535))


@pytest.mark.parametrize(
    ("wrong", "refusal"),
    [
        ({"number": 0}, "the event query is unusable: number: Expected `int` >= 1"),
        ({"number": True}, "the event query is unusable: number: Expected `int`, got `bool`"),
        ({"number": 2**53}, "the event query is unusable: number: Expected `int` <= 9007199254740991"),
        ({"number": 2**64}, "the event query is unusable: number: Expected `int` <= 9007199254740991"),
        ({"number": "7"}, "the event query is unusable: number: Expected `int`, got `str`"),
        ({"server": 7}, "the event query is unusable: server: Expected `str`, got `int`"),
        ({"transport": "sctp"}, "the event query is unusable: transport: Invalid enum value 'sctp'"),
        ({"transport": "\ud800"}, "the event query is unusable: a name or a text is not Unicode"),
        ({"message": None}, "the event query is unusable: message: Expected `str`, got `null`"),
        ({"message": "****"}, "a query that is not in base64"),
        ({"message": "\ud800"}, "a query that is not in base64"),
        ({"message": base64.b64encode(bytes(65536)).decode()}, "a query of 65536 bytes"),
    ],
)
def test_invalid_query_ends_the_link(wrong: dict[str, Any], refusal: str) -> None:
    with pytest.raises(LinkError) as caught:
        read_query(QUERY | wrong)
    assert caught.value.message == f"link: {refusal}"


@given(st.dictionaries(st.sampled_from(["number", "server", "transport", "message"]), st.integers() | st.text()))
def test_any_query_is_parsed_or_refused(fields: dict[str, Any]) -> None:
    try:
        query, message = read_query(fields)
    except LinkError:
        return
    assert query.number > 0
    assert query.transport in ("udp", "tcp")
    assert len(message) <= 65535


def resolv_conf() -> ContainerPlan:
    """The plan of a container whose resolv.conf is the share mount0."""
    mounts = [{"destination": "/etc/resolv.conf", "type": "bind", "source": "/run/hawse/share/c1/mount0"}]
    return ContainerPlan(
        id="c1", bundle="/b", rootfs="/b/rootfs", oci_version="1.0.2", annotations={}, owner="",
        spec={"mounts": mounts}, plugs=[], nodes=[], hugepages=[], binds=[], network="", sysctls={},
        shares=[Share(name="mount0", source="/x", is_dir=False, readonly=True)],
    )  # fmt: skip


@pytest.mark.parametrize("size", [0, 1, 11])
def test_message_of_a_container_that_is_not_a_query_does_not_end_the_sandbox(tmp_path: Path, size: int) -> None:
    """For example by `echo | nc -u 127.0.0.11 53`, if the agent forwarded it."""
    (tmp_path / "mount0").write_text("nameserver 127.0.0.11\n")

    async def story() -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            reader, writer = await asyncio.open_connection(sock=ours)
            link = GuestLink(reader, writer)
            serving = asyncio.create_task(link.run())
            resolver = hosts.Resolver(resolv_conf(), Network("", ""), {"mount0": f"{tmp_path}/mount0"})
            asked = asyncio.create_task(resolver.serve(link))
            theirs.setblocking(False)
            async with asyncio.timeout(patience(3)):
                assert b"serve_names" in await asyncio.get_running_loop().sock_recv(theirs, 4096)
            query = QUERY | {"message": base64.b64encode(bytes(size)).decode()}
            theirs.sendall(control.encode_event("query", query) + control.encode_result(1, None))
            await asked
            assert not link.ended.done()
            theirs.shutdown(socket.SHUT_WR)
            await serving
            assert "the guest closed the link" in link.ended.result().message
            writer.close()

    asyncio.run(story())


@pytest.mark.parametrize("kind", ["directory", "FIFO", "nothing"])
def test_resolv_conf_that_is_not_a_file_has_no_servers(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "mount0"
    if kind == "directory":
        path.mkdir()
    elif kind == "FIFO":
        os.mkfifo(path)
    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(hosts.Resolver(resolv_conf(), Network("", ""), {"mount0": f"{tmp_path}/mount0"}).serve(None))  # type: ignore[arg-type]
    assert len(os.listdir("/proc/self/fd")) == before


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.11", 0))
        port: int = probe.getsockname()[1]
        return port


def test_each_program_in_the_guest_gets_its_own_answer() -> None:
    queries: queue.Queue[dict[str, Any]] = queue.Queue()
    resolver = Resolver(queries.put)
    port = free_port()
    resolver.serve(servers=["127.0.0.11"], port=port)
    answers = {}
    for name in ("message of one", "message of two"):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as program:
            program.settimeout(patience(3))
            program.sendto(name.encode(), ("127.0.0.11", port))
            query = queries.get(timeout=patience(3))
            assert (query["server"], query["transport"]) == ("127.0.0.11", "udp")
            text = base64.b64encode(base64.b64decode(query["message"]) + b"!").decode()
            resolver.answer(number=query["number"], message=text)
            resolver.answer(number=query["number"], message=text)  # no second query was sent to the server
            answers[name] = program.recv(100)
    assert answers == {"message of one": b"message of one!", "message of two": b"message of two!"}
    with socket.create_connection(("127.0.0.11", port), timeout=patience(3)) as program:
        program.sendall(b"\0\x10message of three")
        query = queries.get(timeout=patience(3))
        assert query["transport"] == "tcp"
        resolver.answer(number=query["number"], message=query["message"])
        assert program.recv(100) == b"\0\x10message of three"


@pytest.mark.parametrize("sent", [b"", b"x\n", bytes(11)])
def test_message_that_is_not_a_query_is_not_forwarded(sent: bytes) -> None:
    """Any program of a container can send it to the port, and it could not be answered (RFC 1035, section 4.1.1)."""
    queries: queue.Queue[dict[str, Any]] = queue.Queue()
    port = free_port()
    Resolver(queries.put).serve(servers=["127.0.0.11"], port=port)
    with socket.create_connection(("127.0.0.11", port), timeout=patience(3)) as program:
        program.sendall(len(sent).to_bytes(2, "big") + sent)
        assert program.recv(100) == b"", "the connection ends"
    with socket.create_connection(("127.0.0.11", port), timeout=patience(3)) as program:
        program.sendall(b"\0\x20" + MESSAGE)
        program.shutdown(socket.SHUT_WR)
        assert program.recv(100) == b"", "as does one whose message is cut off"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as program:
        program.sendto(sent, ("127.0.0.11", port))
        program.sendto(MESSAGE, ("127.0.0.11", port))
        assert base64.b64decode(queries.get(timeout=patience(3))["message"]) == MESSAGE
    assert queries.empty()


def test_number_of_connections_is_limited_and_each_is_served() -> None:
    """Each connection takes a thread and a descriptor of the guest's first process."""
    queries: queue.Queue[dict[str, Any]] = queue.Queue()
    resolver = Resolver(queries.put)
    port = free_port()
    resolver.serve(servers=["127.0.0.11"], port=port)
    with ExitStack() as connections:
        programs = [
            connections.enter_context(socket.create_connection(("127.0.0.11", port), timeout=patience(3)))
            for _ in range(100)
        ]
        for program in programs:
            program.sendall(len(MESSAGE).to_bytes(2, "big") + MESSAGE)
        for query in [queries.get(timeout=patience(3)) for _ in range(32)]:
            resolver.answer(number=query["number"], message=query["message"])
        # When a connection ends, the next query, which waits in the kernel, is accepted.
        for program in programs[:68]:
            assert queries.empty()
            program.close()
            query = queries.get(timeout=patience(3))
            resolver.answer(number=query["number"], message=query["message"])
