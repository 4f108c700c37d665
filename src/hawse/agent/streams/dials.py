"""Sockets in the guest that stand for sockets of the host: each connection is announced, and the host connects there.

The host answers with ``accept``, and the connection becomes streams of the link, or with ``refuse``.
"""

from __future__ import annotations

import itertools
import os
import select
import socket
import threading
import time
from contextlib import suppress

from hawse.agent.system import unix_sockets
from hawse.errors import LinkError, NotFoundError, VmError

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: Connections of a guest at once. Further clients wait in the listen backlog.
MOST = 64
_BACKLOG = 128
_PAUSE_SECONDS = 1.0


class Dials:
    """All of a guest. ``announce`` is called with the container, the socket's name and the connection's number."""

    def __init__(self, announce: Callable[[str, str, int], None]) -> None:
        self._announce = announce
        self._numbers = itertools.count(1)
        self._room = threading.Semaphore(MOST)
        self._waiting: dict[int, socket.socket] = {}
        self._listening: dict[str, list[socket.socket]] = {}

    def listen(self, container: str, sockets: Sequence[tuple[str, int, int, int]], directory: str) -> None:
        """Have a container's sockets, of name, mode, uid and gid, in a directory. Raises :class:`VmError`;
        :meth:`close` undoes what was done by then."""
        made = self._listening[container] = []
        os.makedirs(directory, mode=0o711)
        for name, mode, uid, gid in sockets:
            path = f"{directory}/{name}"
            listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            made.append(listening)
            try:
                unix_sockets.bind(listening, path)
                os.chown(path, uid, gid)
                os.chmod(path, mode)
                listening.listen(_BACKLOG)
                listening.setblocking(False)
            except OSError as error:
                raise VmError(f"the guest cannot make the socket {name}: {error.strerror}") from None
            threading.Thread(target=self._accept, args=(container, name, listening), daemon=True).start()

    def close(self, container: str, directory: str) -> None:
        """End a container's sockets. Connections end with its processes."""
        for listening in self._listening.pop(container, ()):
            with suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
            listening.close()
        with suppress(OSError):
            for name in os.listdir(directory):
                os.unlink(f"{directory}/{name}")
            os.rmdir(directory)

    def take(self, number: int) -> socket.socket:
        """A connection that the host accepts. Its :meth:`release` is the caller's duty."""
        try:
            return self._waiting.pop(number)
        except KeyError:
            raise NotFoundError(f"connection {number} does not exist in the guest") from None

    def refuse(self, number: int) -> None:
        """The host has nobody for a connection."""
        self.take(number).close()
        self.release()

    def release(self) -> None:
        """A connection has ended."""
        self._room.release()

    def _accept(self, container: str, name: str, listening: socket.socket) -> None:
        waiting = select.poll()
        waiting.register(listening, select.POLLIN)
        while True:
            # Before there is a client, a socket must not take the capacity of others.
            waiting.poll()
            self._room.acquire()
            try:
                connection, _ = listening.accept()
            except OSError:
                self._room.release()
                if listening not in self._listening.get(container, ()):
                    return
                time.sleep(_PAUSE_SECONDS)  # no descriptors or memory are left (accept(2))
                continue
            number = next(self._numbers)
            self._waiting[number] = connection
            try:
                self._announce(container, name, number)
            except LinkError:
                return  # the host is gone, and this machine with it
