"""Which of its caller's descriptors a command hands on to a process in a virtual machine, and in which direction.

A descriptor is an object of the host's kernel, which the guest's cannot be given. What carries bytes in order can be
relayed as stdio is, and the process gets a pipe or a socket of the guest's in its place. All else is refused, above all
what would seem to work: nothing is started then.
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
#: null, zero, random and urandom (Linux Documentation/admin-guide/devices.txt). Not full: its error would be lost.
_MEMORY_DEVICES = ((1, 3), (1, 5), (1, 8), (1, 9))


@dataclass(frozen=True)
class Descriptor:
    """An open descriptor, as the kernel tells of it.

    ``target`` is proc(5)'s link, ``mode`` st_mode, ``flags`` those of F_GETFL, ``inode`` st_dev and st_ino, ``device``
    the numbers of a device. Of a socket: ``stream`` is its type, ``listening`` and ``connected`` its state.
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
    """How many descriptors systemd has handed to the process of that pid (sd_listen_fds(3))."""
    try:
        return max(0, int(environment["LISTEN_FDS"])) if int(environment["LISTEN_PID"]) == pid else 0
    except (KeyError, ValueError):
        return 0


def inspect(number: int) -> Descriptor | None:
    """An inherited descriptor; None where that number is not open, or is one of this program's own."""
    try:
        if fcntl.fcntl(number, fcntl.F_GETFD) & fcntl.FD_CLOEXEC:
            return None  # it cannot have come through an execve(2)
    except OSError:
        return None
    status = os.fstat(number)
    facts = _ask_socket(number) if stat.S_ISSOCK(status.st_mode) else {}
    return Descriptor(
        number,
        os.readlink(f"/proc/self/fd/{number}"),
        status.st_mode,
        fcntl.fcntl(number, fcntl.F_GETFL),
        inode=(status.st_dev, status.st_ino),
        device=(os.major(status.st_rdev), os.minor(status.st_rdev)),
        terminal=os.isatty(number),
        **facts,
    )


def _ask_socket(number: int) -> dict[str, bool]:
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
    """The directions of the descriptors from 3 on: ``listening`` of systemd's, then ``count`` of --preserve-fds.

    Raises :class:`UsageError` naming the first that cannot be handed on.
    """
    if count < 0:
        raise UsageError(f"--preserve-fds {count}: less than none", hint="give the number of descriptors from 3 on")
    if count + listening > MAX_PRESERVED:
        raise UsageError(
            f"--preserve-fds {count}{f' and LISTEN_FDS {listening}' if listening else ''}: at most {MAX_PRESERVED} "
            "descriptors can be handed on",
            hint="each is relayed into the virtual machine; one socket can carry what many do",
        )
    found: list[Descriptor] = []
    for number in range(_FIRST, _FIRST + listening + count):
        option = "LISTEN_FDS" if number < _FIRST + listening else "--preserve-fds"
        descriptor = look(number)
        if descriptor is None:
            raise UsageError(
                f"{option}: descriptor {number} is not open",
                hint=f"those from {_FIRST} to {_FIRST + listening + count - 1} are to be handed on",
            )
        refusal = refuse(descriptor)
        if refusal is not None:
            what, remedy = refusal
            raise UsageError(
                f"{option}: descriptor {number} is {what}, which cannot be handed into a virtual machine", hint=remedy
            )
        found.append(descriptor)
    if found:
        stdin = look(0)
        _check_alone([*([stdin] if stdin is not None else ()), *found])
    return tuple(direction(descriptor) for descriptor in found)


def direction(descriptor: Descriptor) -> str:
    """The process's. Pure."""
    return {os.O_RDONLY: IN, os.O_WRONLY: OUT}.get(descriptor.flags & os.O_ACCMODE, BOTH)


def refuse(descriptor: Descriptor) -> tuple[str, str] | None:
    """What a descriptor is that cannot be relayed, and what to do in its place; None for one that can. Pure."""
    kind = stat.S_IFMT(descriptor.mode)
    both = descriptor.flags & os.O_ACCMODE == os.O_RDWR
    one_way = "open it for reading or for writing alone"
    if descriptor.flags & os.O_PATH:
        return "an O_PATH descriptor", "open it for reading or writing, or mount what it names"
    if kind == stat.S_IFSOCK:
        return _refuse_socket(descriptor)
    if kind == stat.S_IFIFO:
        # What the process writes would come back to it at once, whoever else was to read it.
        return ("a pipe open for reading and writing", one_way) if both else None
    if not descriptor.target.startswith("/"):
        name = descriptor.target.removeprefix("anon_inode:").strip("[]")
        return f"an object of the host's kernel ({name})", "hand on a pipe or a connected stream socket"
    if kind == stat.S_IFCHR:
        if descriptor.terminal or descriptor.device in _MEMORY_DEVICES:
            return None
        return f"the device {descriptor.target}", "linux.devices names what the container has of the guest's devices"
    if kind == stat.S_IFDIR:
        return "a directory", "mount it into the container"
    if kind != stat.S_IFREG:
        return f"no stream of bytes ({descriptor.target})", "hand on a pipe or a connected stream socket"
    if descriptor.target.startswith("/memfd:"):
        return "a memfd", "write its content to a pipe, or mount a file"
    return ("a file open for reading and writing", f"{one_way}, or mount it into the container") if both else None


def _refuse_socket(descriptor: Descriptor) -> tuple[str, str] | None:
    if descriptor.listening:
        return "a listening socket", "have the program listen itself, in the container's network"
    if not descriptor.stream:
        return "a socket that keeps messages apart", "hand on a connected stream socket"
    if not descriptor.connected:
        return "a socket that is not connected", "connect it first"
    return None


def _check_alone(found: Sequence[Descriptor]) -> None:
    """Raise :class:`UsageError` where two would read the same: each is read ahead of the process, which may only ever
    read from one of them."""
    readers: dict[object, int] = {}
    for descriptor in found:
        if not descriptor.readable or descriptor.device in _MEMORY_DEVICES:
            continue
        # A terminal has several names: /dev/tty is one of them.
        source = "terminal" if descriptor.terminal else descriptor.inode
        other = readers.setdefault(source, descriptor.number)
        if other != descriptor.number:
            raise UsageError(
                f"--preserve-fds: descriptor {descriptor.number} reads from what descriptor {other} reads from, and in "
                "a virtual machine each would take a part of it",
                hint="hand it on once; a terminal can be opened for writing alone",
            )
