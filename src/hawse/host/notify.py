"""The host's end of a container's notifications: the socket of the service manager, or of the engine (sd_notify(3)).

Standard library only: `start` uses it, which is a hot verb.
"""

from __future__ import annotations

import os
import select
import socket
import stat
import threading

from hawse.errors import HostError

TYPE_CHECKING = False  # typing's import would cost a hot verb a tenth of its time
if TYPE_CHECKING:
    from hawse.oci.process.notify_socket import Notify

#: The same time as in runc (notify_socket.go, sdNotifyBarrier()).
_BARRIER_SECONDS = 30.0
#: How long a service manager that does not read can delay a command after its container has ended.
_FINISH_SECONDS = 5.0
_MAX_BYTES = 4096


def connect(address: str) -> socket.socket:
    """Connect a datagram socket to a path or, with a leading "@", to an abstract name. Raises OSError."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        connection.connect(f"\0{address[1:]}" if address.startswith("@") else address)
    except OSError:
        connection.close()
        raise
    return connection


def connect_for(notify: Notify) -> socket.socket:
    """Like :func:`connect`, for the host's socket of a plan. Raises OSError.

    The part below a mount is opened without following links. A container that wrote there before could otherwise name
    any socket of the host.
    """
    if notify.caller:
        return connect(notify.host)
    fd = os.open(notify.host, os.O_PATH | os.O_CLOEXEC)
    try:
        for name in filter(None, notify.below.split("/")):
            inner = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            os.close(fd)
            fd = inner
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise ConnectionRefusedError("it is not a socket")
        return connect(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def problem(notify: Notify) -> str:
    """The reason why the socket cannot be reached; "" if it can."""
    try:
        connect_for(notify).close()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        return str(getattr(error, "strerror", None) or error)
    return ""


class Relay:
    """Sends the messages of the container's proxy from this process, a command that stays in the foreground.

    systemd accepts messages of a service's main process only, unless NotifyAccess= says otherwise.
    """

    def __init__(self, host: socket.socket) -> None:
        """Start the thread; :attr:`theirs` is the proxy's end."""
        self._host = host
        # This type preserves message boundaries and reports when the peer closes the socket.
        self._ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while data := self._ours.recv(_MAX_BYTES):
            send(self._host, data.decode(errors="replace"), pid=os.getpid())

    def finish(self) -> None:
        """Send the rest after the proxy has ended. ``theirs`` has to be closed in this process."""
        self._thread.join(_FINISH_SECONDS)
        if not self._thread.is_alive():
            self._ours.close()
            self._host.close()


def send(host: socket.socket, notice: str, *, pid: int) -> bool:
    """Send a notification, with MAINPID= if it contains READY=1. Returns False if it cannot be sent."""
    ready = "READY=1" in notice.split("\n")
    try:
        host.sendall(f"{notice}\nMAINPID={pid}\n".encode() if ready else notice.encode())
    except OSError:
        return False
    return True


def report_ready(address: str, notice: str, *, pid: int) -> None:
    """Send a notification, and wait until the service manager has read it. Raises :class:`HostError`.

    The sender must be alive until then, so that the service manager finds its unit.
    """
    try:
        with connect(address) as host:
            if send(host, notice, pid=pid):
                _wait_until_read(host)
                return
            problem = "Connection refused"
    except (OSError, ValueError) as error:
        problem = str(getattr(error, "strerror", None) or error)
    raise HostError(
        f"NOTIFY_SOCKET: {address[:200]}: {problem}: the container is ready, but this cannot be reported",
        hint="set it to the service manager's socket, or unset it",
    )


def _wait_until_read(host: socket.socket) -> None:
    """The receiver closes the descriptor once it has read all earlier messages (sd_notify_barrier(3))."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        socket.send_fds(host, [b"BARRIER=1"], [writing])
    except OSError:
        return
    finally:
        os.close(writing)
        poll = select.poll()
        poll.register(reading, 0)  # POLLHUP is always reported (poll(2))
        poll.poll(int(_BARRIER_SECONDS * 1000))
        os.close(reading)
