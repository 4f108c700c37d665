"""UNIX sockets and FIFOs of the host that a container binds: which sockets are forwarded, and warnings about others.

In the guest they have no peer: the guest kernel knows only the sockets and FIFOs that the guest's processes opened.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable, Mapping, Sequence

import msgspec

from hawse.errors import ConfigError
from hawse.patterns import is_path_pattern, matches_path

SOCKET, FIFO = "UNIX socket", "FIFO"
STREAM, DATAGRAM = "stream", "datagram"
ANNOTATION = "hawse.forward-sockets"


class Special(msgspec.Struct, frozen=True):
    """A socket or a FIFO: its kind, its path with all links resolved, its mode and its owners."""

    kind: str
    path: str
    mode: int
    uid: int
    gid: int


def find_special(source: str) -> Special | None:
    """The socket or FIFO that a path resolves to; None for other files, and in /proc, where they are descriptors."""
    path = os.path.realpath(source)
    try:
        status = os.stat(path)
    except OSError:
        return None
    if path.startswith("/proc/") or not (stat.S_ISSOCK(status.st_mode) or stat.S_ISFIFO(status.st_mode)):
        return None
    kind = SOCKET if stat.S_ISSOCK(status.st_mode) else FIFO
    return Special(kind, path, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)


def type_of(path: str) -> str:
    """Return STREAM or DATAGRAM, without the server noticing. Raises OSError if the path cannot be opened.

    The type is found by connecting a datagram socket: this fails for a socket of another type (unix(7), EPROTOTYPE),
    and sends nothing to a datagram socket. A socket that no process has open counts as STREAM.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            probe.connect(f"/proc/self/fd/{fd}")  # the path may be longer than an address
        except OSError:
            return STREAM
        finally:
            os.close(fd)
    return DATAGRAM


def patterns_of(annotations: Mapping[str, str], configured: Sequence[str]) -> tuple[str, ...]:
    """The patterns of sockets to forward for a container. Raises :class:`ConfigError` naming the annotation."""
    requested = tuple(text.strip() for text in annotations.get(ANNOTATION, "").split(",") if text.strip())
    for pattern in requested:
        if not is_path_pattern(pattern):
            raise ConfigError(
                f"annotations: {ANNOTATION}: {pattern[:200]!r} is not an absolute path",
                hint="list paths of the host's sockets, separated by commas",
            )
    return (*configured, *requested)


def obstacle(where: str, special: Special, patterns: Sequence[str], type_of: Callable[[str], str] = type_of) -> str:
    """A warning if a socket or FIFO is not forwarded, "" if it is. ``where`` names the mount's source."""
    where = f"{where}: {special.path[:200]} is a {special.kind} of the host"
    if special.kind == FIFO:
        return f"{where}: it connects only containers of the same sandbox [use a file or a network]"
    if not any(matches_path(special.path, pattern) for pattern in patterns):
        return (
            f"{where}: connections to it are refused in the container, which runs on another kernel "
            "[an administrator can forward it with share.forward_sockets in the configuration]"
        )
    try:
        if type_of(special.path) == STREAM:
            return ""
    except OSError as error:
        return f"{where}, and its type cannot be read: {os.strerror(error.errno or errno.EIO)}"
    return f"{where} for datagrams: hawse forwards only stream sockets [configure the program to log elsewhere]"
