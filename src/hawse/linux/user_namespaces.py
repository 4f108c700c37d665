"""User namespaces of the host: what one maps, and one with a mapping for a mount. Standard library only.

A child of a moment is in the namespace, since a process of several threads can enter none (setns(2)); the caller, who
has one thread, looks at it from outside: ids are shown in terms of the namespace of who reads (user_namespaces(7)).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from contextlib import contextmanager

from hawse.linux.mounts import check

TYPE_CHECKING = False  # typing's import would cost a proxy a tenth of its time
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Ranges = Sequence[tuple[int, int, int]]
    """The first id inside, the first outside, and their count."""

_CLONE_NEWUSER = 0x10000000
_NS_GET_NSTYPE = 0xB703  # include/uapi/linux/nsfs.h
_EINVAL = 22
#: Number of an error, 0 for none, and a pid.
_REPORT = struct.Struct("=iI")
_libc = ctypes.CDLL(None, use_errno=True)


def read(path: str) -> tuple[list[tuple[int, int, int]], list[tuple[int, int, int]]]:
    """The mappings of users and groups of the namespace at a path. Raises OSError, EINVAL where none is there or it is
    this process's own."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        try:
            kind = fcntl.ioctl(fd, _NS_GET_NSTYPE)
        except OSError:
            kind = 0
        if kind != _CLONE_NEWUSER:
            raise OSError(_EINVAL, "not a user namespace", path)
        with _child(lambda: check(_libc.setns(fd, _CLONE_NEWUSER), path)) as pid:
            return _ranges(f"/proc/{pid}/uid_map"), _ranges(f"/proc/{pid}/gid_map")
    finally:
        os.close(fd)


def create(uids: Ranges, gids: Ranges) -> int:
    """A descriptor of a new namespace with these mappings. Raises OSError."""
    with _child(lambda: check(_libc.unshare(_CLONE_NEWUSER), "unshare")) as pid:
        for name, ranges in (("uid_map", uids), ("gid_map", gids)):
            # In one call to write(2), as the kernel wants it.
            with open(f"/proc/{pid}/{name}", "wb", buffering=0) as file:
                file.write("".join(f"{inside} {outside} {count}\n" for inside, outside, count in ranges).encode())
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)


@contextmanager
def _child(enter: Callable[[], object]) -> Iterator[int]:
    """The pid, as /proc has it, of a child that has entered and waits. Raises the OSError of its entering.

    It may be another one than fork(2) returns: a proxy is in a PID namespace, and sees the host's /proc.
    """
    told, tell = os.pipe()
    wait, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(go)  # else its own end would keep it waiting
            enter()
            os.write(tell, _REPORT.pack(0, int(os.readlink("/proc/self"))))
            os.read(wait, 1)
        except OSError as error:
            os.write(tell, _REPORT.pack(error.errno or _EINVAL, 0))
        finally:
            os._exit(0)
    os.close(tell)
    os.close(wait)
    try:
        code, number = _REPORT.unpack(os.read(told, _REPORT.size).ljust(_REPORT.size, b"\xff"))
        if code:
            raise OSError(code, os.strerror(code))
        yield number
    finally:
        os.close(go)
        os.close(told)
        os.waitpid(pid, 0)


def _ranges(path: str) -> list[tuple[int, int, int]]:
    with open(path) as file:
        lines = [line.split() for line in file]
    return [(int(inside), int(outside), int(count)) for inside, outside, count in lines]
