"""The engine's end of a console socket, to which a runtime sends the master of a container's terminal."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.patience import patience

#: Given to :func:`patience`.
_SECONDS = 15


class Console:
    """A socket that listens at ``path`` during the context."""

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
        """The descriptor of the master, open during the context."""
        connection, _ = self._listener.accept()
        with connection:
            connection.settimeout(patience(_SECONDS))
            _, fds, _, _ = socket.recv_fds(connection, 4096, 1)
        try:
            yield fds[0]
        finally:
            os.close(fds[0])
