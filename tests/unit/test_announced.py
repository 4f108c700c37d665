"""Connections that the agent announces: refused after every failure of the host, and limited if they are idle."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from hawse.errors import HostError, VmError
from hawse.link.frames import EOF
from hawse.monitor.agent.calls import Refuse
from hawse.monitor.agent.events import Dial
from hawse.monitor.network.announced import Announced
from hawse.monitor.processes.connection import Connection
from hawse.monitor.processes.process_table import Processes
from tests.support import virtual_time
from tests.support.pods import settle


@pytest.mark.parametrize("error", [HostError("no namespace"), RuntimeError("can't start new thread"), OSError("no")])
def test_every_failure_of_the_host_refuses_the_connection(error: Exception) -> None:
    """The agent keeps a connection open until it is answered, and has a limited number of them."""
    calls: list[object] = []

    class Recorder(Processes):
        async def call(self, call: Any, **_: Any) -> Any:
            calls.append(call)

    async def connect(_dial: Dial) -> socket.socket:
        raise error

    async def live() -> None:
        dials = Announced(Recorder(seconds=1), connect, what="sockets of the host", most=2)
        for number in range(1, 6):
            dials.handle(Dial("c1", "api", number))
            await settle()
        assert calls == [Refuse(connection=number) for number in range(1, 6)]

    virtual_time.run(live())


def test_idle_connection_is_reset() -> None:
    """Data of either side extends the time. A connection of another kind has no limit."""
    ours, theirs = socket.socketpair()

    class Accepting(Processes):
        async def accept(self, connection: Connection, _announced: int) -> None:
            for _ in range(3):
                await asyncio.sleep(10)
                connection.on_data()
            await asyncio.Event().wait()

    async def connect(_dial: Dial) -> socket.socket:
        theirs.setblocking(False)
        return theirs

    async def live() -> None:
        loop = asyncio.get_running_loop()
        dials = Announced(Accepting(seconds=1), connect, what="name servers", most=2, idle=15.0)
        began = loop.time()
        dials.handle(Dial("c1", "api", 1))
        while dials._tasks:
            await asyncio.sleep(1)
        assert 45 <= loop.time() - began <= 47
        with ours:
            assert ours.recv(1) == b""

    virtual_time.run(live())


@pytest.mark.parametrize("error", [ConnectionResetError("reset"), VmError("the agent did not answer")])
def test_data_after_a_failure_is_ignored(error: Exception) -> None:
    """The agent still sends what it had sent before it learns of the failure."""
    connections: list[Connection] = []
    ours, theirs = socket.socketpair()

    class Failing(Processes):
        async def accept(self, connection: Connection, _announced: int) -> None:
            connections.append(connection)
            raise error

    async def connect(_dial: Dial) -> socket.socket:
        theirs.setblocking(False)
        return theirs

    async def live() -> None:
        dials = Announced(Failing(seconds=1), connect, what="name servers", most=2, idle=15.0)
        dials.handle(Dial("c1", "api", 1))
        while dials._tasks:
            await asyncio.sleep(1)
        connections[0].send(3, EOF, b"")

    with ours:
        virtual_time.run(live())
