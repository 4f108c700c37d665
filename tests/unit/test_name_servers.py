"""Name servers on the loopback: which servers of a resolv.conf, events about queries, and the agent's half."""

from __future__ import annotations

import asyncio
import os
import queue
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hawse.agent.streams.announced import MOST, Announced
from hawse.agent.streams.name_servers import NameServers
from hawse.errors import LinkError, NotFoundError
from hawse.monitor.agent.events import Query, read_event
from hawse.monitor.network import name_servers as hosts
from hawse.monitor.network.host_network import Network
from hawse.monitor.network.name_servers import loopback_servers
from hawse.oci.guest.share import Share
from hawse.plan.model import ContainerPlan
from tests.support.patience import patience, wait_until
from tests.support.processes import waits_for_input

SERVER = "127.0.0.11"
MESSAGE = bytes(range(12))
QUERY: dict[str, Any] = {"server": SERVER, "transport": "udp", "connection": 7}


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


def test_valid_event_is_accepted() -> None:
    for fields in (QUERY, {"server": SERVER, "transport": "tcp", "connection": 2**53 - 1}):
        event = read_event("query", fields)
        assert event == Query(**fields)


@pytest.mark.parametrize(
    ("wrong", "refusal"),
    [
        ({"connection": 0}, "connection: Expected `int` >= 1"),
        ({"connection": True}, "connection: Expected `int`, got `bool`"),
        ({"connection": 2**53}, "connection: Expected `int` <= 9007199254740991"),
        ({"connection": 2**64}, "connection: Expected `int` <= 9007199254740991"),
        ({"connection": "7"}, "connection: Expected `int`, got `str`"),
        ({"server": 7}, "server: Expected `str`, got `int`"),
        ({"transport": "sctp"}, "transport: Invalid enum value 'sctp'"),
        ({"transport": "\ud800"}, "a name or a text is not Unicode"),
    ],
)
def test_event_with_an_invalid_field_ends_the_link(wrong: dict[str, Any], refusal: str) -> None:
    with pytest.raises(LinkError) as caught:
        read_event("query", QUERY | wrong)
    assert caught.value.message == f"link: the event query is unusable: {refusal}"


@given(st.dictionaries(st.sampled_from(["connection", "server", "transport"]), st.integers() | st.text()))
def test_any_event_is_accepted_or_refused(fields: dict[str, Any]) -> None:
    try:
        event = read_event("query", fields)
    except LinkError:
        return
    assert isinstance(event, Query)
    assert event.connection > 0
    assert event.transport in ("udp", "tcp")


def resolv_conf() -> ContainerPlan:
    """The plan of a container whose resolv.conf is the share mount0."""
    mounts = [{"destination": "/etc/resolv.conf", "type": "bind", "source": "/run/hawse/share/c1/mount0"}]
    return ContainerPlan(
        id="c1", bundle="/b", rootfs="/b/rootfs", oci_version="1.0.2", annotations={}, owner="",
        spec={"mounts": mounts}, plugs=[], nodes=[], hugepages=[], binds=[], network="", sysctls={},
        shares=[Share(name="mount0", source="/x", is_dir=False, readonly=True)],
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["directory", "FIFO", "nothing"])
def test_resolv_conf_that_is_not_a_file_names_no_server(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "mount0"
    if kind == "directory":
        path.mkdir()
    elif kind == "FIFO":
        os.mkfifo(path)
    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(hosts.NameServers(resolv_conf(), Network("", ""), {"mount0": f"{tmp_path}/mount0"}).serve(None))  # type: ignore[arg-type]
    assert len(os.listdir("/proc/self/fd")) == before


class Agent:
    """Name servers of a guest, and what the host is sent about them."""

    def __init__(self) -> None:
        self.events: queue.Queue[dict[str, Any]] = queue.Queue()
        self.announced = Announced(lambda _name, fields: self.events.put(fields))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((SERVER, 0))
            self.address = (SERVER, probe.getsockname()[1])
        before = set(threading.enumerate())
        NameServers(self.announced).serve(servers=[SERVER], port=self.address[1])
        self.threads = set(threading.enumerate()) - before

    def await_rest(self) -> None:
        """Wait until the datagrams that were sent have been read, and no thread has anything to do."""
        entry = f":{self.address[1]:04X} "

        def rests() -> bool:
            lines = [line.split() for line in Path("/proc/net/udp").read_text().splitlines() if entry in line]
            return all(line[4].endswith(":00000000") for line in lines) and all(map(waits_for_input, self.threads))

        wait_until(rests)

    def next(self) -> dict[str, Any]:
        """The fields of the next event."""
        return self.events.get(timeout=patience(3))

    def accept(self) -> Accepted:
        """Accept the next connection, like the host."""
        event = self.next()
        return Accepted(event, *self.announced.take(event["connection"]))


class Accepted:
    """A connection that the host has accepted."""

    def __init__(self, event: dict[str, Any], connection: socket.socket, release: Any) -> None:
        self.event = event
        self.connection = connection
        self.release = release

    def answer(self, data: bytes) -> bytes:
        """Send this and end the connection; the bytes that the guest has sent."""
        with self.connection:
            received = b""
            while piece := self.connection.recv(70_000):
                received += piece
            self.connection.sendall(data)
        self.release()
        return received


@pytest.fixture
def agent() -> Agent:
    return Agent()


@pytest.fixture
def program() -> Iterator[socket.socket]:
    """A program of a container with a socket of UDP."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.settimeout(patience(3))
        yield opened


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(2, "big") + message


@pytest.mark.parametrize("size", [12, 512, 65507])
def test_query_over_udp_is_a_connection_with_the_query(agent: Agent, program: socket.socket, size: int) -> None:
    """The largest message is that of a datagram of IPv4."""
    program.sendto(bytes(size), agent.address)
    accepted = agent.accept()
    assert (accepted.event["server"], accepted.event["transport"]) == (SERVER, "udp")
    reply = b"a" * size
    assert accepted.answer(framed(reply) + b"more") == framed(bytes(size))
    assert program.recvfrom(70_000) == (reply, agent.address)


def test_each_program_gets_its_own_answer(agent: Agent) -> None:
    with ExitStack() as stack:
        programs = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(10)]
        for number, each in enumerate(programs):
            each.settimeout(patience(3))
            each.sendto(b"query of number %d" % number, agent.address)
        for accepted in reversed([agent.accept() for _ in programs]):
            accepted.answer(framed(accepted.connection.recv(100, socket.MSG_PEEK)[2:]))
        assert [each.recv(100) for each in programs] == [b"query of number %d" % n for n in range(10)]


@pytest.mark.parametrize("reply", [b"", b"\0", framed(MESSAGE)[:-1]])
def test_query_without_a_complete_answer_is_forgotten(agent: Agent, program: socket.socket, reply: bytes) -> None:
    program.sendto(MESSAGE, agent.address)
    agent.accept().answer(reply)
    program.sendto(MESSAGE, agent.address)
    agent.accept().answer(framed(b"second"))
    assert program.recv(100) == b"second"


def test_query_that_the_host_refuses_is_forgotten(agent: Agent, program: socket.socket) -> None:
    for _ in range(MOST + 10):
        program.sendto(MESSAGE, agent.address)
        number = agent.next()["connection"]
        agent.announced.refuse(number)
    with pytest.raises(NotFoundError, match=f"connection {number} does not exist in the guest"):
        agent.announced.refuse(number)


@pytest.mark.parametrize("sent", [b"", b"x\n", bytes(11)])
def test_datagram_that_is_not_a_query_stays_in_the_guest(agent: Agent, program: socket.socket, sent: bytes) -> None:
    """Any program of a container can send one, for example `echo | nc -u 127.0.0.11 53` (RFC 1035, section 4.1.1)."""
    program.sendto(sent, agent.address)
    program.sendto(MESSAGE, agent.address)
    assert agent.accept().answer(b"") == framed(MESSAGE)
    assert agent.events.empty()


def test_queries_beyond_the_limit_are_dropped(agent: Agent, program: socket.socket) -> None:
    """Their programs ask again."""
    for number in range(MOST + 1):
        program.sendto(b"query of number %d" % number, agent.address)
    accepted = [agent.accept() for _ in range(MOST)]
    agent.await_rest()
    accepted[0].answer(b"")
    program.sendto(b"query that is sent again", agent.address)
    last = agent.accept()
    assert last.answer(b"") == framed(b"query that is sent again")
    for each in accepted[1:]:
        each.answer(b"")


def test_connections_beyond_the_limit_wait(agent: Agent) -> None:
    """Their bytes are not examined: the server does that."""
    with ExitStack() as stack:
        programs = [
            stack.enter_context(socket.create_connection(agent.address, timeout=patience(3))) for _ in range(MOST + 5)
        ]
        accepted = [agent.accept() for _ in range(MOST)]
        assert {each.event["transport"] for each in accepted} == {"tcp"}
        for each in programs:
            each.sendall(b"any bytes")
            each.shutdown(socket.SHUT_WR)
        for _ in range(5):
            assert agent.events.empty()
            assert accepted.pop(0).answer(b"an answer") == b"any bytes"
            accepted.append(agent.accept())
        for remaining in accepted:
            remaining.answer(b"an answer")
        assert [each.recv(100) for each in programs] == [b"an answer"] * (MOST + 5)
