"""Sockets in the guest that represent sockets of the host: the host connects each connection to its own socket."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress
from functools import partial

from hawse.agent.streams.announced import MOST, Announced, accept_all
from hawse.agent.system import unix_sockets
from hawse.errors import VmError

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_BACKLOG = 128


class HostSockets:
    """The sockets of all containers of the guest."""

    def __init__(self, announced: Announced) -> None:
        self._announced = announced
        self._capacity = threading.Semaphore(MOST)
        self._listening: dict[str, list[socket.socket]] = {}

    def listen(self, container: str, sockets: Sequence[tuple[str, int, int, int]], directory: str) -> None:
        """Create a container's sockets (name, mode, uid, gid) in a directory.

        Raises :class:`VmError`; then call :meth:`close` to remove the sockets that were created.
        """
        opened = self._listening[container] = []
        os.makedirs(directory, mode=0o711)
        for name, mode, uid, gid in sockets:
            path = f"{directory}/{name}"
            listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            opened.append(listening)
            try:
                unix_sockets.bind(listening, path)
                os.chown(path, uid, gid)
                os.chmod(path, mode)
                listening.listen(_BACKLOG)
                listening.setblocking(False)
            except OSError as error:
                raise VmError(f"the guest cannot create the socket {name}: {error.strerror}") from None
            threading.Thread(target=self._serve, args=(container, name, listening), daemon=True).start()

    def close(self, container: str, directory: str) -> None:
        """Close a container's sockets. Open connections end when the container's processes end."""
        for listening in self._listening.pop(container, ()):
            with suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
            listening.close()
        with suppress(OSError):
            for name in os.listdir(directory):
                os.unlink(f"{directory}/{name}")
            os.rmdir(directory)

    def _serve(self, container: str, name: str, listening: socket.socket) -> None:
        accept_all(
            listening,
            partial(self._announce, container, name),
            is_open=lambda: listening in self._listening.get(container, ()),
            capacity=self._capacity,
        )

    def _announce(self, container: str, name: str, connection: socket.socket, ended: Callable[[], None]) -> None:
        self._announced.announce("dial", {"container": container, "socket": name}, connection, ended=ended)
