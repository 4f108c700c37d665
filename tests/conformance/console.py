"""The console socket of an engine: a runtime sends the master of a container's terminal to it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.patience import patience

#: The time limit, passed to :func:`patience`.
_SECONDS = 15


class Console:
    """A socket that listens at ``path`` while the context lasts."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.settimeout(patience(_SECONDS))

    def __enter__(self) -> Console:
        self._listener.bind(self.path)
        self._listener.listen(1)
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        os.unlink(self.path)

    @contextmanager
    def receive(self) -> Iterator[int]:
        """Receive the descriptor of the master, which is open while the context lasts."""
        connection, _ = self._listener.accept()
        with connection:
            connection.settimeout(patience(_SECONDS))
            _, fds, _, _ = socket.recv_fds(connection, 4096, 1)
        try:
            yield fds[0]
        finally:
            os.close(fds[0])
