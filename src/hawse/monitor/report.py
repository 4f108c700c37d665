"""The answer of a new monitor to the command that started it."""

from __future__ import annotations

import json
import socket
from contextlib import suppress


class Report:
    """The command line that asked for the sandbox: told once how it went."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.sent = False

    def send(self, message: dict[str, object]) -> None:
        """Say how it went, once. A caller that is gone is no error here: everything is undone then."""
        if self.sent:
            return
        self.sent = True
        self.connection.setblocking(True)
        with suppress(OSError):
            self.connection.sendall(json.dumps(message).encode() + b"\n")
            self.connection.shutdown(socket.SHUT_WR)
