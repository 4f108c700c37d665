"""Processes, by descriptors and beside the standard library: prctl(2), setns(2), unshare(2), pidfd_getfd(2).

The kernel gives the pid of a process that has ended and was waited for to another one. A pid is safe to use only for an
own child that was not waited for yet, or together with a descriptor of the process, :class:`Process`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import struct

from hawse.linux.mounts import check

TYPE_CHECKING = False  # typing's import would cost a proxy a tenth of its time
if TYPE_CHECKING:
    from collections.abc import Sequence

_CLONE_NEWNS, _CLONE_NEWPID = 0x20000, 0x20000000
_CLONE_NEWCGROUP, _CLONE_NEWUTS, _CLONE_NEWIPC, _CLONE_NEWNET = 0x2000000, 0x4000000, 0x8000000, 0x40000000
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_SIGKILL = 9
_SYS_PIDFD_GETFD = 438
#: Since Linux 6.5 (include/uapi/asm-generic/socket.h); Python has no name for it yet.
_SO_PEERPIDFD = 77
_libc = ctypes.CDLL(None, use_errno=True)


class NamespaceError(OSError):
    """A PID namespace cannot be created."""


class ChildrenApart:
    """While this lasts, a process that is started is the first of a PID namespace. Since Linux 3.13 the calling process
    may have other threads; they are not to start processes meanwhile."""

    def __enter__(self) -> None:
        """Raises :class:`NamespaceError`."""
        self._own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        try:
            check(_libc.unshare(_CLONE_NEWPID), "unshare")
        except OSError as error:
            os.close(self._own)
            raise NamespaceError(error.errno, error.strerror) from None

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


def leave_namespaces() -> None:
    """Have private mount, cgroup, UTS, IPC and network namespaces. Raises OSError."""
    flags = _CLONE_NEWNS | _CLONE_NEWCGROUP | _CLONE_NEWUTS | _CLONE_NEWIPC | _CLONE_NEWNET
    check(_libc.unshare(flags), "unshare")


def has_ended(process: int, *, seconds: float = 0.0) -> bool:
    """Whether the process of a descriptor has ended, or does so within ``seconds``."""
    poll = select.poll()  # select(2) takes no descriptor above 1023
    poll.register(process, select.POLLIN)  # readable from its end on (pidfd_open(2))
    return bool(poll.poll(seconds * 1000))


def die_with(parent: int) -> None:
    """In a forked child: be killed when the parent's thread ends, however it ends (prctl(2), PR_SET_PDEATHSIG).

    ``parent`` is a descriptor of the parent (pidfd_open(2)). Raises OSError, ESRCH if the parent has ended already.
    """
    check(_libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0), "")
    # Not by getppid(2): a parent of another PID namespace has no number here that would change with its death.
    if has_ended(parent):
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))


class Process:
    """Another process, by its pid and by a descriptor (pidfd_open(2)) that shows whether the pid is still its own.

    It owns the descriptor. With -1, and after :meth:`close`, it stands for a process that has ended.
    """

    def __init__(self, pid: int, descriptor: int) -> None:
        self.pid = pid
        self._descriptor = descriptor

    def is_alive(self) -> bool:
        """Whether it has not ended. As long as it has not, its pid is no other process's."""
        return self._descriptor >= 0 and not has_ended(self._descriptor)

    def open(self, path: str) -> int:
        """A descriptor of ``/proc/PID/<path>`` of this process and no other. Raises OSError, ESRCH where it has ended.

        It was alive after the file was opened, so the pid was its own all the time.
        """
        fd = os.open(f"/proc/{self.pid}/{path}", os.O_RDONLY | os.O_CLOEXEC)
        if not self.is_alive():
            os.close(fd)
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH), f"/proc/{self.pid}/{path}")
        return fd

    def take_descriptors(self, numbers: Sequence[int]) -> list[int]:
        """Descriptors of this process, as our own. Raises OSError, with none taken; ESRCH where it has ended."""
        if self._descriptor < 0:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        taken: list[int] = []
        for number in numbers:
            try:
                taken.append(check(_libc.syscall(_SYS_PIDFD_GETFD, self._descriptor, number, 0), ""))
            except OSError:
                for other in taken:
                    os.close(other)
                raise
        return taken

    def fileno(self) -> int:
        """The descriptor, which is readable from the end of the process on."""
        return self._descriptor

    def close(self) -> None:
        """Close the descriptor."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self.close()


def open_process(pid: int) -> Process:
    """This process, or a child that was not waited for yet: only of these a pid is safe to use. Raises OSError.

    Of any other the caller has to find out afterwards whose descriptor this is."""
    return Process(pid, os.pidfd_open(pid))


def children_of(parent: Process) -> list[Process]:
    """The children of a process that run, as far as the kernel lists them (proc(5), task/TID/children)."""
    try:
        with open(parent.open(f"task/{parent.pid}/children")) as file:
            pids = [int(word) for word in file.read().split()]
    except OSError:
        return []
    found = []
    for pid in pids:
        try:
            child = open_process(pid)
            with open(f"/proc/{pid}/stat", "rb") as file:
                above = int(file.read().rpartition(b")")[2].split()[1])
        except OSError:
            continue
        # The pid may have become another's between the list and the descriptor; not between the descriptor and here.
        if above == parent.pid and child.is_alive() and parent.is_alive():
            found.append(child)
    return found


def peer(connection: socket.socket, *, option: int = _SO_PEERPIDFD) -> Process:
    """The process that connected to the other end of a stream socket, from the kernel and not from its own words
    (unix(7), SO_PEERCRED). ``option`` is the number of SO_PEERPIDFD."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", credentials)[0]
    try:
        return Process(pid, connection.getsockopt(socket.SOL_SOCKET, option))
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            return Process(pid, -1)  # it has ended (Linux net/core/sock.c, sk_getsockopt())
    try:
        process = Process(pid, os.pidfd_open(pid))
    except OSError:
        return Process(pid, -1)
    # The peer may have ended before, and its pid be another's. The kernel closes its end of the connection first.
    poll = select.poll()
    poll.register(connection, 0)  # POLLHUP is always reported (poll(2))
    if poll.poll(0):
        process.close()
    return process


def enter_mount_namespace(process: int) -> None:
    """In a forked child: be in the mount namespace of a process, by its descriptor (setns(2), since Linux 5.8). Raises
    OSError."""
    check(_libc.setns(process, _CLONE_NEWNS), "setns")
