"""Queries for names that the guest passes on: what of a resolv.conf, what of a query is taken, and who is answered."""

from __future__ import annotations

import base64
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hawse.agent.resolver import Resolver
from hawse.errors import LinkError
from hawse.sandbox.resolver import loopback_servers, parse_query

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


def test_a_query_is_read() -> None:
    assert parse_query(QUERY) == (7, "127.0.0.11", "udp", MESSAGE)


@pytest.mark.parametrize(
    "wrong",
    [
        {"number": 0}, {"number": True}, {"number": 2**53}, {"number": "7"}, {"server": 7}, {"transport": "sctp"},
        {"message": None}, {"message": "****"}, {"message": ""}, {"message": base64.b64encode(bytes(65536)).decode()},
        {"message": base64.b64encode(bytes(11)).decode()},
    ],
)  # fmt: skip
def test_a_query_that_breaks_a_rule_ends_the_link(wrong: dict[str, Any]) -> None:
    with pytest.raises(LinkError, match="query"):
        parse_query(QUERY | wrong)


@given(st.dictionaries(st.sampled_from(["number", "server", "transport", "message"]), st.integers() | st.text()))
def test_any_query_is_read_or_refused(query: dict[str, Any]) -> None:
    try:
        number, _, transport, message = parse_query(query)
    except LinkError:
        return
    assert number > 0
    assert transport in ("udp", "tcp")
    assert 12 <= len(message) <= 65535


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.11", 0))
        port: int = probe.getsockname()[1]
        return port


def test_each_program_in_the_guest_gets_its_own_answer() -> None:
    asked: list[dict[str, Any]] = []
    resolver = Resolver(asked.append)
    port = free_port()
    resolver.serve(servers=["127.0.0.11"], port=port)
    answers = {}
    for name in ("one", "two"):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as program:
            program.settimeout(10)
            program.sendto(name.encode(), ("127.0.0.11", port))
            while not asked:
                continue
            query = asked.pop()
            assert (query["server"], query["transport"]) == ("127.0.0.11", "udp")
            text = base64.b64encode(base64.b64decode(query["message"]) + b"!").decode()
            resolver.answer(number=query["number"], message=text)
            resolver.answer(number=query["number"], message=text)  # a second one has nobody to go to
            answers[name] = program.recv(100)
    assert answers == {"one": b"one!", "two": b"two!"}
    with socket.create_connection(("127.0.0.11", port), timeout=10) as program:
        program.sendall(b"\0\x05three")
        while not asked:
            continue
        assert asked[0]["transport"] == "tcp"
        resolver.answer(number=asked[0]["number"], message=asked[0]["message"])
        assert program.recv(100) == b"\0\x05three"
