"""Which of the caller's file descriptors a command passes to a process in the VM, and in which direction.

A descriptor refers to an object of the host kernel, which cannot be moved to the guest kernel. An ordered byte stream
can be relayed as stdio is: the process gets a pipe or a socket of the guest instead. All other descriptors are refused,
above all those that would only seem to work; then no process is started.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hawse.errors import UsageError
from hawse.link.streams import BOTH, IN, MAX_PRESERVED, OUT, STDIO

_FIRST = len(STDIO)
#: null, zero, random and urandom (Linux Documentation/admin-guide/devices.txt). Not full: a relay loses its ENOSPC.
_MEMORY_DEVICES = ((1, 3), (1, 5), (1, 8), (1, 9))


@dataclass(frozen=True)
class Descriptor:
    """The kernel's data about an open descriptor.

    ``target``: the link in /proc/PID/fd (proc(5)). ``mode``: st_mode. ``flags``: those of F_GETFL. ``inode``: st_dev
    and st_ino. ``device``: major and minor number of a device. For sockets: ``stream`` is true for SOCK_STREAM,
    ``listening`` and ``connected`` are the state.
    """

    number: int
    target: str
    mode: int
    flags: int
    inode: tuple[int, int] = (0, 0)
    device: tuple[int, int] = (0, 0)
    terminal: bool = False
    stream: bool = False
    listening: bool = False
    connected: bool = False

    @property
    def readable(self) -> bool:
        """Whether it was opened for reading."""
        return self.flags & os.O_ACCMODE in (os.O_RDONLY, os.O_RDWR)


def activated(environment: Mapping[str, str], pid: int) -> int:
    """The number of descriptors that systemd has passed to the process of that pid (sd_listen_fds(3))."""
    try:
        return max(0, int(environment["LISTEN_FDS"])) if int(environment["LISTEN_PID"]) == pid else 0
    except (KeyError, ValueError):
        return 0


def inspect(number: int) -> Descriptor | None:
    """An inherited descriptor; None if the number is not open, or if this program has opened it itself."""
    try:
        if fcntl.fcntl(number, fcntl.F_GETFD) & fcntl.FD_CLOEXEC:
            return None  # an inherited descriptor has no FD_CLOEXEC: execve(2) would have closed it
    except OSError:
        return None
    status = os.fstat(number)
    socket_fields = _socket_fields(number) if stat.S_ISSOCK(status.st_mode) else {}
    return Descriptor(
        number,
        os.readlink(f"/proc/self/fd/{number}"),
        status.st_mode,
        fcntl.fcntl(number, fcntl.F_GETFL),
        inode=(status.st_dev, status.st_ino),
        device=(os.major(status.st_rdev), os.minor(status.st_rdev)),
        terminal=os.isatty(number),
        **socket_fields,
    )


def _socket_fields(number: int) -> dict[str, bool]:
    connection = socket.socket(fileno=number)
    try:
        try:
            connection.getpeername()
            connected = True
        except OSError:
            connected = False
        return {
            "stream": connection.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM,
            "listening": bool(connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)),
            "connected": connected,
        }
    finally:
        connection.detach()


def preserve(count: int, *, listening: int = 0, look: Callable[[int], Descriptor | None] = inspect) -> tuple[str, ...]:
    """The directions of the descriptors from 3 on: first ``listening`` of systemd, then ``count`` of --preserve-fds.

    ``look`` inspects a descriptor. Raises :class:`UsageError` for the first descriptor that cannot be passed.
    """
    if count < 0:
        raise UsageError(f"--preserve-fds {count}: negative number", hint="give the number of descriptors from 3 on")
    if count + listening > MAX_PRESERVED:
        raise UsageError(
            f"--preserve-fds {count}{f' and LISTEN_FDS {listening}' if listening else ''}: at most {MAX_PRESERVED} "
            "descriptors can be passed",
            hint="each one is relayed into the VM; use one socket instead of many",
        )
    descriptors: list[Descriptor] = []
    for number in range(_FIRST, _FIRST + listening + count):
        option = "LISTEN_FDS" if number < _FIRST + listening else "--preserve-fds"
        descriptor = look(number)
        if descriptor is None:
            raise UsageError(
                f"{option}: descriptor {number} is not open",
                hint=f"open the descriptors from {_FIRST} to {_FIRST + listening + count - 1}, which are to be passed",
            )
        refusal = refuse(descriptor)
        if refusal is not None:
            what, remedy = refusal
            raise UsageError(f"{option}: descriptor {number} cannot be passed into a VM: it is {what}", hint=remedy)
        descriptors.append(descriptor)
    if descriptors:
        stdin = look(0)
        _check_sources([*([stdin] if stdin is not None else ()), *descriptors])
    return tuple(direction(descriptor) for descriptor in descriptors)


def direction(descriptor: Descriptor) -> str:
    """The direction as the process uses the descriptor. Pure."""
    return {os.O_RDONLY: IN, os.O_WRONLY: OUT}.get(descriptor.flags & os.O_ACCMODE, BOTH)


def refuse(descriptor: Descriptor) -> tuple[str, str] | None:
    """The reason and the remedy if a descriptor cannot be relayed; None if it can. Pure."""
    kind = stat.S_IFMT(descriptor.mode)
    both = descriptor.flags & os.O_ACCMODE == os.O_RDWR
    one_way = "open it only for reading or only for writing"
    if descriptor.flags & os.O_PATH:
        return "an O_PATH descriptor", "open it for reading or writing, or mount what it names"
    if kind == stat.S_IFSOCK:
        return _refuse_socket(descriptor)
    if kind == stat.S_IFIFO:
        # The process would read back its own output, although it is meant for another reader.
        return ("a pipe open for reading and writing", one_way) if both else None
    if not descriptor.target.startswith("/"):
        name = descriptor.target.removeprefix("anon_inode:")
        name = name[1:-1] if name.startswith("[") else name
        return f"an object of the host kernel ({name})", "pass a pipe or a connected stream socket"
    if kind == stat.S_IFCHR:
        if descriptor.terminal or descriptor.device in _MEMORY_DEVICES:
            return None
        return f"the device {descriptor.target}", "list devices of the guest in linux.devices"
    if kind == stat.S_IFDIR:
        return "a directory", "mount it into the container"
    if kind != stat.S_IFREG:
        return f"not a byte stream ({descriptor.target})", "pass a pipe or a connected stream socket"
    if descriptor.target.startswith("/memfd:"):
        return "a memfd", "write its content to a pipe, or mount a file"
    return ("a file open for reading and writing", f"{one_way}, or mount it into the container") if both else None


def _refuse_socket(descriptor: Descriptor) -> tuple[str, str] | None:
    if descriptor.listening:
        return "a listening socket", "let the program listen itself, in the container's network"
    if not descriptor.stream:
        return "a socket with message boundaries", "pass a connected stream socket"
    if not descriptor.connected:
        return "a socket that is not connected", "connect it first"
    return None


def _check_sources(descriptors: Sequence[Descriptor]) -> None:
    """Raise :class:`UsageError` if two descriptors read from the same source.

    The relay reads ahead of the process on each of them, but the process may read from only one: data would get lost.
    """
    readers: dict[object, int] = {}
    for descriptor in descriptors:
        if not descriptor.readable or descriptor.device in _MEMORY_DEVICES:
            continue
        # A terminal has several names: /dev/tty is one of them.
        source = "terminal" if descriptor.terminal else descriptor.inode
        other = readers.setdefault(source, descriptor.number)
        if other != descriptor.number:
            raise UsageError(
                f"--preserve-fds: descriptor {descriptor.number} reads from the same source as descriptor "
                f"{other}, and each relay into the VM would take a part of the data",
                hint="pass it once; a terminal can be opened only for writing",
            )
