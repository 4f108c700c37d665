"""Connections from containers to sockets of the host, which an administrator has allowed.

The guest names a socket of a container's plan, and never a path. The connection is made to the very socket that was
bound when the container was created, as a bind mount would: one that has been made at its path since is another.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from hawse.errors import HawseError, LinkError
from hawse.monitor.agent.calls import Refuse
from hawse.monitor.agent.events import Dial
from hawse.monitor.processes.connection import Connection
from hawse.monitor.processes.processes import Processes

#: As many as the agent has at once (hawse.agent.streams.dials). It waits for an answer before it announces more.
_MOST = 64


class Dials:
    """All of a sandbox, in the monitor's one event loop."""

    def __init__(self, processes: Processes, open_socket: Callable[[str, str], int]) -> None:
        """``open_socket`` has a descriptor of a container's socket of a name. It raises OSError and LookupError."""
        self._processes = processes
        self._open_socket = open_socket
        self._room = asyncio.Semaphore(_MOST)
        self._unanswered = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, dial: Dial) -> None:
        """A connection waits in the guest. Raises :class:`LinkError` where there are more than an agent announces."""
        if self._unanswered >= _MOST:
            raise LinkError(f"link: more than {_MOST} connections to sockets of the host at once")
        self._unanswered += 1
        self._begin(self._serve(dial))

    def end(self) -> None:
        """End the connections."""
        for task in self._tasks:
            task.cancel()

    async def _serve(self, dial: Dial) -> None:
        async with self._room:
            try:
                dialled = self._dial(dial.container, dial.socket)
            except (OSError, LookupError):
                self._unanswered -= 1
                with suppress(HawseError):
                    await self._processes.call(Refuse(connection=dial.connection))
                return
            self._unanswered -= 1
            connection = Connection(*await asyncio.open_unix_connection(sock=dialled))
            try:
                await self._processes.accept(connection, dial.connection)
                await connection.close()
            except (HawseError, OSError):  # nobody to tell but the two ends
                connection.reset()
            except BaseException:
                connection.reset()
                raise

    def _dial(self, container: str, name: str) -> socket.socket:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            made.setblocking(False)  # EAGAIN where the backlog is full (unix(7)): one server must not hold up others
            fd = self._open_socket(container, name)
            try:
                made.connect(f"/proc/self/fd/{fd}")
            finally:
                os.close(fd)
        except BaseException:
            made.close()
            raise
        return made

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
