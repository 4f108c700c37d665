"""Sockets of the host that an administrator has allowed to be forwarded into containers."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from hawse.monitor.agent.events import Dial

#: The agent's limit of concurrent connections (hawse.agent.streams.announced).
MOST = 64


class HostSockets:
    """``open_socket(container, name)`` returns a descriptor of a socket. It raises OSError and LookupError."""

    def __init__(self, open_socket: Callable[[str, str], int]) -> None:
        self._open_socket = open_socket

    async def connect(self, dial: Dial) -> socket.socket:
        """Connect to the socket that existed when the container was created, as through a bind mount.

        Another socket may have replaced it at its path since then. Raises as ``open_socket``.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            # EAGAIN if the backlog is full (unix(7)): one server must not delay others.
            connection.setblocking(False)
            descriptor = self._open_socket(dial.container, dial.socket)
            try:
                connection.connect(f"/proc/self/fd/{descriptor}")
            finally:
                os.close(descriptor)
        except BaseException:
            connection.close()
            raise
        return connection
