"""Processes and their file descriptors: prctl(2), setns(2), unshare(2), pidfd_getfd(2), which Python does not offer.

The kernel reuses the pid of a process that has ended and was waited for. A pid is safe to use only for a child of this
process that was not waited for yet, or together with a pidfd of the process, as in :class:`Process`.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct

from hawse.linux.libc import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUTS,
    check,
    libc,
)

TYPE_CHECKING = False  # typing's import would cost a proxy a tenth of its time
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_SIGKILL = 9
_SYS_PIDFD_GETFD = 438
#: Since Linux 6.5 (include/uapi/asm-generic/socket.h); Python has no name for it yet.
_SO_PEERPIDFD = 77


class NamespaceError(OSError):
    """A PID namespace cannot be created."""


class ChildrenApart:
    """A context in which a started process is the first of a new PID namespace. The calling process may have other
    threads (since Linux 3.13), but they must not start processes meanwhile."""

    def __enter__(self) -> None:
        """Raises :class:`NamespaceError`."""
        self._own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        try:
            check(libc.unshare(CLONE_NEWPID), "unshare")
        except OSError as error:
            os.close(self._own)
            raise NamespaceError(error.errno, error.strerror) from None

    def __exit__(self, *_: object) -> None:
        try:
            check(libc.setns(self._own, CLONE_NEWPID), "setns")
        finally:
            os.close(self._own)


def give_up_privileges() -> None:
    """Set no_new_privs (PR_SET_NO_NEW_PRIVS): programs that this process executes gain no privileges by set-uid bits or
    file capabilities. Raises OSError."""
    check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "")


def leave_namespaces() -> None:
    """Enter new mount, cgroup, UTS, IPC and network namespaces. Raises OSError."""
    flags = CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET
    check(libc.unshare(flags), "unshare")


def has_ended(process: int, *, seconds: float = 0.0) -> bool:
    """Whether the process of a pidfd has ended, or ends within ``seconds``."""
    poll = select.poll()  # select(2) does not support descriptors above 1023
    poll.register(process, select.POLLIN)  # readable since the process has ended (pidfd_open(2))
    return bool(poll.poll(seconds * 1000))


def die_with(parent: int) -> None:
    """In a forked child: request SIGKILL when the parent's thread ends for any reason (prctl(2), PR_SET_PDEATHSIG).

    ``parent`` is a pidfd of the parent (pidfd_open(2)). Raises OSError, ESRCH if the parent has ended already.
    """
    check(libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0), "")
    # Not getppid(2): it returns 0 for a parent in another PID namespace, before and after the parent's death.
    if has_ended(parent):
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))


class Process:
    """Another process: its pid, and a pidfd (pidfd_open(2)) that shows whether the pid still belongs to it.

    The object owns the pidfd. With the descriptor -1, and after :meth:`close`, it represents a process that has ended.
    """

    def __init__(self, pid: int, descriptor: int) -> None:
        self.pid = pid
        self._descriptor = descriptor

    def is_alive(self) -> bool:
        """Whether the process has not ended. While this is true, its pid cannot belong to another process."""
        return self._descriptor >= 0 and not has_ended(self._descriptor)

    def open(self, path: str) -> int:
        """Open ``/proc/PID/<path>`` of this process; returns a file descriptor. Raises OSError, ESRCH if it has ended.

        The file belongs to this process and not to a later one with the same pid, since this process is still alive
        after the file was opened.
        """
        fd = os.open(f"/proc/{self.pid}/{path}", os.O_RDONLY | os.O_CLOEXEC)
        if not self.is_alive():
            os.close(fd)
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH), f"/proc/{self.pid}/{path}")
        return fd

    def take_descriptors(self, numbers: Sequence[int]) -> list[int]:
        """Duplicate file descriptors of this process into the calling one (pidfd_getfd(2)).

        Raises OSError, ESRCH if the process has ended; then no duplicate remains open.
        """
        if self._descriptor < 0:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        taken: list[int] = []
        for number in numbers:
            try:
                taken.append(check(libc.syscall(_SYS_PIDFD_GETFD, self._descriptor, number, 0), ""))
            except OSError:
                for other in taken:
                    os.close(other)
                raise
        return taken

    def fileno(self) -> int:
        """The pidfd, which becomes readable when the process ends."""
        return self._descriptor

    def close(self) -> None:
        """Close the pidfd."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self.close()


def open_process(pid: int) -> Process:
    """Open a pidfd of this process, or of a child that was not waited for yet. Raises OSError.

    The pid of any other process may have been reused: the caller must check afterwards which process was opened."""
    return Process(pid, os.pidfd_open(pid))


def children_of(parent: Process) -> list[Process]:
    """The running children of a process, as far as the kernel lists them (proc(5), task/TID/children)."""
    try:
        with open(parent.open(f"task/{parent.pid}/children")) as file:
            pids = [int(word) for word in file.read().split()]
    except OSError:
        return []
    children = []
    for pid in pids:
        try:
            child = open_process(pid)
            with open(f"/proc/{pid}/stat", "rb") as file:
                parent_pid = int(file.read().rpartition(b")")[2].split()[1])
        except OSError:
            continue
        # The pid may have been reused after the list was read and before the pidfd was opened, but not afterwards.
        if parent_pid == parent.pid and child.is_alive() and parent.is_alive():
            children.append(child)
    return children


def peer(
    connection: socket.socket, *, option: int = _SO_PEERPIDFD, open_pid: Callable[[int], int] = os.pidfd_open
) -> Process:
    """The process that connected to the other end of a stream socket, as the kernel reports it (unix(7), SO_PEERCRED).

    ``option`` is the number of SO_PEERPIDFD. ``open_pid``: pidfd_open(2).
    """
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", credentials)[0]
    try:
        return Process(pid, connection.getsockopt(socket.SOL_SOCKET, option))
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            return Process(pid, -1)  # it has ended (Linux net/core/sock.c, sk_getsockopt())
    try:
        process = Process(pid, open_pid(pid))
    except OSError:
        return Process(pid, -1)
    # The peer may have ended before, and its pid may have been reused. In this case the kernel has closed its end of
    # the connection before.
    poll = select.poll()
    poll.register(connection, 0)  # POLLHUP is always reported (poll(2))
    if poll.poll(0):
        process.close()
    return process


def enter_mount_namespace(process: int) -> None:
    """In a forked child: enter the mount namespace of a process by its pidfd (setns(2), since Linux 5.8).

    Raises OSError.
    """
    check(libc.setns(process, CLONE_NEWNS), "setns")
