"""Send a pidfd to an engine that requests one: unlike a pid it never refers to another process later."""

from __future__ import annotations

import os
import socket

from hawse.errors import HostError

#: The payload, as runc sends it: "standard" for a container's first process, "setns" for others
#: (libcontainer/standard_init_linux.go and setns_init_linux.go, setupPidfd()).
FIRST, FURTHER = "standard", "setns"


def send(pidfd_socket: str | None, pid: int, kind: str) -> None:
    """Send a pidfd (pidfd_open(2)) of the proxy, which represents the container's process, to the listening engine.

    As with the terminal, the function does not wait for an answer. ``pid`` is a child of the caller that was not waited
    for yet, so the number was not reused. Raises :class:`HostError` that names the socket.
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
