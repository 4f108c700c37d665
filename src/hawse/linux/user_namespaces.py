"""User namespaces of the host: read a namespace's mappings, create one for an ID-mapped mount. Standard library only.

A short-lived child process enters the namespace, since a process with several threads cannot (setns(2)). The caller,
which has one thread, reads the mappings from outside: the kernel shows ids in terms of the reader's namespace
(user_namespaces(7)).
"""

from __future__ import annotations

import fcntl
import os
import struct
from contextlib import contextmanager

from hawse.linux.libc import CLONE_NEWUSER, NS_GET_NSTYPE, check, libc

TYPE_CHECKING = False  # typing's import would cost a proxy a tenth of its time
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Ranges = Sequence[tuple[int, int, int]]
    """The first id inside, the first outside, and their count."""

_EINVAL = 22
#: The child's report: an error number, 0 for success, and a pid.
_REPORT = struct.Struct("=iI")


def read(path: str) -> tuple[list[tuple[int, int, int]], list[tuple[int, int, int]]]:
    """The user and group mappings of the namespace at a path.

    Raises OSError, EINVAL if the file is not a user namespace or is this process's own one.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        try:
            kind = fcntl.ioctl(fd, NS_GET_NSTYPE)
        except OSError:
            kind = 0
        if kind != CLONE_NEWUSER:
            raise OSError(_EINVAL, "not a user namespace", path)
        with _child(lambda: check(libc.setns(fd, CLONE_NEWUSER), path)) as pid:
            return _ranges(f"/proc/{pid}/uid_map"), _ranges(f"/proc/{pid}/gid_map")
    finally:
        os.close(fd)


def create(uids: Ranges, gids: Ranges) -> int:
    """Create a namespace with these mappings; returns its file descriptor. Raises OSError."""
    with _child(lambda: check(libc.unshare(CLONE_NEWUSER), "unshare")) as pid:
        for name, ranges in (("uid_map", uids), ("gid_map", gids)):
            # The kernel requires the whole mapping in one write(2).
            with open(f"/proc/{pid}/{name}", "wb", buffering=0) as file:
                file.write("".join(f"{inside} {outside} {count}\n" for inside, outside, count in ranges).encode())
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)


@contextmanager
def _child(enter: Callable[[], object]) -> Iterator[int]:
    """Fork a child that calls ``enter`` and waits for the end of the context; its pid as in /proc.

    Raises the OSError of ``enter``. The pid may differ from the one that fork(2) returns: a proxy is in a PID namespace
    and sees the host's /proc.
    """
    report_reader, report_writer = os.pipe()
    exit_reader, exit_writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(exit_writer)  # otherwise the read below would wait for the child's own end
            enter()
            os.write(report_writer, _REPORT.pack(0, int(os.readlink("/proc/self"))))
            os.read(exit_reader, 1)
        except OSError as error:
            os.write(report_writer, _REPORT.pack(error.errno or _EINVAL, 0))
        finally:
            os._exit(0)
    os.close(report_writer)
    os.close(exit_reader)
    try:
        code, number = _REPORT.unpack(os.read(report_reader, _REPORT.size).ljust(_REPORT.size, b"\xff"))
        if code:
            raise OSError(code, os.strerror(code))
        yield number
    finally:
        os.close(exit_writer)
        os.close(report_reader)
        os.waitpid(pid, 0)


def _ranges(path: str) -> list[tuple[int, int, int]]:
    with open(path) as file:
        lines = [line.split() for line in file]
    return [(int(inside), int(outside), int(count)) for inside, outside, count in lines]
