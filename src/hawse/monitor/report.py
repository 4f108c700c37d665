"""The answer of a new monitor to the command that started it."""

from __future__ import annotations

import json
import socket
from contextlib import suppress


class Report:
    """The connection to the command that requested the sandbox. It gets one result."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.sent = False

    def send(self, message: dict[str, object]) -> None:
        """Send the result, once. A closed connection is ignored: then the sandbox is removed."""
        if self.sent:
            return
        self.sent = True
        self.connection.setblocking(True)
        with suppress(OSError):
            self.connection.sendall(json.dumps(message).encode() + b"\n")
            self.connection.shutdown(socket.SHUT_WR)
