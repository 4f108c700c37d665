"""Processes, by descriptors and beside the standard library: prctl(2), setns(2), unshare(2), pidfd_getfd(2)."""

from __future__ import annotations

import ctypes
import os

from hawse.linux.mounts import check

TYPE_CHECKING = False  # typing's import would cost a proxy a tenth of its time
if TYPE_CHECKING:
    from collections.abc import Sequence

_CLONE_NEWNS, _CLONE_NEWPID = 0x20000, 0x20000000
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_SIGKILL = 9
_SYS_PIDFD_GETFD = 438
_libc = ctypes.CDLL(None, use_errno=True)


class ChildrenApart:
    """While this lasts, a process that is started is the first of a PID namespace. Since Linux 3.13 the calling process
    may have other threads; they are not to start processes meanwhile."""

    def __enter__(self) -> None:
        """Raises OSError."""
        self._own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        try:
            check(_libc.unshare(_CLONE_NEWPID), "unshare")
        except BaseException:
            os.close(self._own)
            raise

    def __exit__(self, *_: object) -> None:
        try:
            check(_libc.setns(self._own, _CLONE_NEWPID), "setns")
        finally:
            os.close(self._own)


def give_up_privileges() -> None:
    """Let no program that this process executes gain privileges by set-uid or file capabilities (PR_SET_NO_NEW_PRIVS).

    Raises OSError.
    """
    check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "")


def die_with_parent() -> None:
    """In a forked child: be killed when the parent's thread ends, however it ends (prctl(2), PR_SET_PDEATHSIG)."""
    _libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)


def enter_mount_namespace(pid: int) -> None:
    """In a forked child: be in the mount namespace of that process. Raises OSError."""
    path = f"/proc/{pid}/ns/mnt"
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        check(_libc.setns(fd, _CLONE_NEWNS), path)
    finally:
        os.close(fd)


def take_descriptors(pid: int, numbers: Sequence[int]) -> list[int]:
    """Descriptors of another process's, as our own. Raises OSError, with none taken."""
    taken: list[int] = []
    process = os.pidfd_open(pid)
    try:
        for number in numbers:
            try:
                taken.append(check(_libc.syscall(_SYS_PIDFD_GETFD, process, number, 0), ""))
            except OSError:
                for other in taken:
                    os.close(other)
                raise
    finally:
        os.close(process)
    return taken
