"""Name queries that the host has not answered yet."""

from __future__ import annotations

import base64
import queue
import socket
from typing import Any

import pytest

from hawse.agent.streams.resolver import Resolver
from tests.support.patience import patience

QUERY = bytes(range(12))
SERVER = "127.0.0.12"


@pytest.mark.parametrize(("count", "answered"), [(128, 1), (129, 2)])
def test_oldest_query_is_dropped_above_the_limit(count: int, answered: int) -> None:
    """The program that sent it repeats its query."""
    queries: queue.Queue[dict[str, Any]] = queue.Queue()
    resolver = Resolver(queries.put)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((SERVER, 0))
        port = probe.getsockname()[1]
    resolver.serve(servers=[SERVER], port=port)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as program:
        program.settimeout(patience(3))
        for number in range(1, count + 1):
            program.sendto(QUERY, (SERVER, port))
            assert queries.get(timeout=patience(3))["number"] == number
        for number in range(1, count + 1):
            resolver.answer(number=number, message=base64.b64encode(b"%d" % number).decode())
        assert program.recv(100) == b"%d" % answered
