"""Connections of containers that the agent announces: to forwarded sockets of the host, and to name servers.

The guest names the destination, never a path on the host. The monitor connects to the destination. Then it accepts the
connection, whose bytes become a stream of the link, or refuses it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, Generic, TypeVar

from hawse.errors import HawseError, LinkError
from hawse.monitor.agent.calls import Refuse
from hawse.monitor.agent.events import Dial, Query
from hawse.monitor.processes.connection import Connection
from hawse.monitor.processes.process_table import Processes

AnyEvent = TypeVar("AnyEvent", Dial, Query)


class Announced(Generic[AnyEvent]):
    """The connections of one kind of event, in the monitor's one event loop.

    ``connect`` returns a connected socket that does not block. Any error of it refuses the connection. A connection
    without data in both directions for ``idle`` seconds is reset; None for no limit.
    ``most`` is the number of connections that the agent keeps unanswered or open at once
    (hawse.agent.streams.announced). More announcements are a protocol violation.
    """

    def __init__(
        self, processes: Processes, connect: Callable[[AnyEvent], Awaitable[socket.socket]], *, what: str, most: int,
        idle: float | None = None,
    ) -> None:  # fmt: skip
        self._processes = processes
        self._connect: Callable[[AnyEvent], Awaitable[socket.socket]] = connect
        self._what = what
        self._most = most
        self._idle = idle
        self._slots = asyncio.Semaphore(most)
        self._unanswered = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def handle(self, event: AnyEvent) -> None:
        """Serve a connection that waits in the guest. Raises :class:`LinkError` if the agent announces too many."""
        if self._unanswered >= self._most:
            raise LinkError(f"link: more than {self._most} connections to {self._what} at once")
        self._unanswered += 1
        self._begin(self._serve(event))

    def end(self) -> None:
        """End the connections."""
        for task in self._tasks:
            task.cancel()

    async def _serve(self, event: AnyEvent) -> None:
        async with self._slots:
            connection = None
            with suppress(Exception):  # for example, no thread can be started
                connection = await self._connected(event)
            # Before the answer: the agent may announce the next connection when it has received it.
            self._unanswered -= 1
            if connection is None:
                with suppress(HawseError):
                    await self._processes.call(Refuse(connection=event.connection))
                return
            try:
                async with asyncio.timeout(self._idle) as limit:
                    connection.on_data = lambda: self._extend(limit)
                    try:
                        await self._processes.accept(connection, event.connection)
                        await connection.close()
                    finally:
                        connection.on_data = lambda: None
            except (HawseError, OSError):  # the reset reports the error to both ends
                connection.reset()
            except BaseException:
                connection.reset()
                raise

    async def _connected(self, event: AnyEvent) -> Connection:
        connected = await self._connect(event)
        try:
            return Connection(*await asyncio.open_connection(sock=connected))
        except BaseException:
            connected.close()
            raise

    def _extend(self, limit: asyncio.Timeout) -> None:
        if self._idle is not None and not limit.expired():
            limit.reschedule(asyncio.get_running_loop().time() + self._idle)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
