"""UNIX sockets and FIFOs of the host that a container binds: which sockets are forwarded, and what is warned of.

A guest finds nobody behind them: its kernel knows only what its own processes have opened.
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
    """A socket or a FIFO, by the path that its links lead to, its mode and its owners."""

    kind: str
    path: str
    mode: int
    uid: int
    gid: int


def find_special(source: str) -> Special | None:
    """The socket or FIFO that a path leads to, None for anything else. Those of /proc are a process's descriptors."""
    path = os.path.realpath(source)
    try:
        found = os.stat(path)
    except OSError:
        return None
    if path.startswith("/proc/") or not (stat.S_ISSOCK(found.st_mode) or stat.S_ISFIFO(found.st_mode)):
        return None
    kind = SOCKET if stat.S_ISSOCK(found.st_mode) else FIFO
    return Special(kind, path, stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid)


def type_of(path: str) -> str:
    """STREAM or DATAGRAM. Nobody is told of the question: a socket of datagrams cannot be connected to another type
    (unix(7), EPROTOTYPE), and to one of its own without a message. One that nobody has open may be of streams."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asking:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            asking.connect(f"/proc/self/fd/{fd}")  # the path may be longer than an address
        except OSError:
            return STREAM
        finally:
            os.close(fd)
    return DATAGRAM


def patterns_of(annotations: Mapping[str, str], configured: Sequence[str]) -> tuple[str, ...]:
    """The patterns of sockets that a container has forwarded. Raises :class:`ConfigError` naming the annotation."""
    asked = tuple(text.strip() for text in annotations.get(ANNOTATION, "").split(",") if text.strip())
    for pattern in asked:
        if not is_path_pattern(pattern):
            raise ConfigError(
                f"annotations: {ANNOTATION}: {pattern[:200]!r} is no absolute path",
                hint="name sockets of the host, with commas between them",
            )
    return (*configured, *asked)


def obstacle(where: str, special: Special, patterns: Sequence[str], type_of: Callable[[str], str] = type_of) -> str:
    """What to warn of where a socket or a FIFO is not forwarded, "" where it is. ``where`` names the mount's source."""
    where = f"{where}: {special.path[:200]} is a {special.kind} of the host"
    if special.kind == FIFO:
        return f"{where}: only containers of the same sandbox exchange data through it [use a file or a network]"
    if not any(matches_path(special.path, pattern) for pattern in patterns):
        return (
            f"{where}: connections to it are refused in the container, which has another kernel "
            "[an administrator has it forwarded by share.forward_sockets in the configuration]"
        )
    try:
        if type_of(special.path) == STREAM:
            return ""
    except OSError as error:
        return f"{where}, which cannot be looked at: {os.strerror(error.errno or errno.EIO)}"
    return f"{where}, of datagrams: only sockets of streams are forwarded [have the program log elsewhere]"
