"""The terminal that crun creates for a process."""

from __future__ import annotations

import os
import socket

from hawse.errors import VmError


class ConsoleSocket:
    """The socket to which crun sends the master side of the terminal that it has created."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(10)

    def __enter__(self) -> ConsoleSocket:
        self._socket.bind(self.path)
        self._socket.listen(1)
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        os.unlink(self.path)

    def receive(self) -> int:
        """The terminal's descriptor, which crun sends before it ends. Raises :class:`VmError`."""
        try:
            connection, _ = self._socket.accept()
            with connection:
                _, fds, _, _ = socket.recv_fds(connection, 4096, 1)
        except OSError as error:
            raise VmError(f"crun sent no terminal: {error}") from None
        if len(fds) != 1:
            raise VmError("crun sent no terminal")
        os.set_inheritable(fds[0], False)
        return fds[0]
