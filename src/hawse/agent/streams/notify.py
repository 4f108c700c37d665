"""The socket for notifications of a container's processes (sd_notify(3)); each message is forwarded to the host.

The monitor checks the messages. The kernel closes descriptors that come with a datagram (FDSTORE=1, BARRIER=1), because
they are not received (unix(7), SCM_RIGHTS). This ends a barrier (sd_notify_barrier(3)) after all earlier messages.
"""

from __future__ import annotations

import os
import socket
import threading

from hawse.agent.system import unix_sockets

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from collections.abc import Callable

#: systemd accepts no longer messages (src/core/manager.c, NOTIFY_BUFFER_MAX is PIPE_BUF).
MAX_BYTES = 4096
_NAME = "notify.sock"
#: Limits a container to 20 messages a second, so that it cannot flood the host. Senders block, as with a busy systemd.
_PAUSE = 0.05


class Notify:
    """The socket of one container, read by a thread until :meth:`end`."""

    def __init__(self, directory: str, send: Callable[[str], None]) -> None:
        """Create the directory with the socket. ``send`` is called with each message. Raises OSError."""
        self._directory = directory
        os.makedirs(directory)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        path = f"{directory}/{_NAME}"
        unix_sockets.bind(self._socket, path)
        os.chmod(path, 0o777)  # for every user of the container
        self._send = send
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Forward all messages sent so far, and accept no more. A second call has no effect."""
        self._ending.set()
        self._socket.shutdown(socket.SHUT_RD)  # queued messages can still be read, then the end of file
        self._thread.join()

    def end(self) -> None:
        """Call :meth:`finish`, then remove the socket and its directory."""
        self.finish()
        self._socket.close()
        os.unlink(f"{self._directory}/{_NAME}")
        os.rmdir(self._directory)

    def _serve(self) -> None:
        while True:
            data = self._socket.recv(MAX_BYTES + 1)
            if not data:
                if self._ending.is_set():
                    return
                continue  # an empty datagram
            if len(data) <= MAX_BYTES:
                self._send(data.decode(errors="replace"))
            self._ending.wait(_PAUSE)
