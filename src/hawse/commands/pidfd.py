"""The descriptor of a process that engines may ask for beside its pid, which another may have tomorrow."""

from __future__ import annotations

import os
import socket

from hawse.errors import HostError

#: What runc sends along: which of its two ways it made the process in (libcontainer/standard_init_linux.go and
#: setns_init_linux.go, setupPidfd()).
FIRST, FURTHER = "standard", "setns"


def send(pidfd_socket: str | None, pid: int, kind: str) -> None:
    """Send a pidfd of the process that stands for the container's (pidfd_open(2)) to whoever listens there.

    As with the terminal, nothing is waited for. The process is the caller's child, which was not waited for: the pid is
    its own. Raises :class:`HostError` naming the socket.
    """
    if pidfd_socket is None:
        return
    try:
        fd = os.pidfd_open(pid)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.connect(pidfd_socket)
                socket.send_fds(connection, [kind.encode()], [fd])
        finally:
            os.close(fd)
    except OSError as error:
        raise HostError(
            f"cannot send the pidfd to the socket {pidfd_socket}: {error.strerror or error}",
            hint="--pidfd-socket names a listening AF_UNIX stream socket",
        ) from None
