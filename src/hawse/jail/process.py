"""The steps that confine a process between fork and exec. Standard library only, and no step takes a lock.

The order matters. Namespaces and mounts need capabilities, so the capabilities are dropped afterwards. A change of the
user id clears the signal for the parent's death (Linux kernel/cred.c, commit_creds()), so it is requested after the
change. The filter of system calls comes last, since it refuses calls that the other steps make.
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
from collections.abc import Callable
from dataclasses import dataclass

from hawse.jail import seccomp
from hawse.linux import mounts
from hawse.linux.capabilities import drop_bounding, keep_only
from hawse.linux.mounts import check
from hawse.linux.processes import give_up_privileges, leave_namespaces

_PR_SET_PDEATHSIG = 1
_SIGKILL = 9
#: Of what is below /proc a process is shown itself (Linux Documentation/filesystems/proc.rst, subset=, since 5.8).
_PROC = "subset=pid,hidepid=invisible"
_SAFE = mounts.NOSUID | mounts.NODEV | mounts.NOEXEC
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Limits:
    """Resource limits: open files, processes and threads of the user, and how far a file can be written, in bytes."""

    files: int = 8192
    processes: int = 1024
    file_bytes: int = 0


class Failure(OSError):
    """The kernel refused a step; ``strerror`` names the step."""


def enter(root: str, *, user: int, limits: Limits, parent: int) -> None:
    """Enter the jail whose root is mounted at ``root``, as ``user``, without rights outside it.

    Call it in the child of a fork, as the first process of a PID namespace (:class:`ChildrenApart`). ``parent`` is a
    descriptor of the parent (pidfd_open(2)). Raises :class:`Failure`.
    """
    steps: list[tuple[str, Callable[[], object]]] = [
        ("make namespaces", leave_namespaces),
        ("make the mounts private", lambda: mounts.mount("none", "/", "", mounts.REC | mounts.PRIVATE)),
        ("change the root directory", lambda: mounts.change_root(root)),
        ("mount /proc", lambda: mounts.mount("proc", "/proc", "proc", _SAFE, _PROC)),
        ("set limits", lambda: _limit(limits)),
        ("limit capabilities", drop_bounding),
        ("change the user", lambda: _become(user)),
        # The inheritable ones survive a change of the user (capabilities(7)).
        ("drop capabilities", lambda: keep_only(())),
        ("give up new privileges", give_up_privileges),
        ("die with the monitor", lambda: die_with(parent)),
        ("filter system calls", seccomp.install),
    ]
    for name, step in steps:
        try:
            step()
        except OSError as error:
            raise Failure(error.errno, f"cannot {name}: {error.strerror}") from None


def _limit(limits: Limits) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits.file_bytes, limits.file_bytes))
    _, most = resource.getrlimit(resource.RLIMIT_NPROC)
    processes = limits.processes if most == resource.RLIM_INFINITY else min(limits.processes, most)
    resource.setrlimit(resource.RLIMIT_NPROC, (processes, processes))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = limits.files if most == resource.RLIM_INFINITY else min(limits.files, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))


def _become(user: int) -> None:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def die_with(parent: int) -> None:
    """Be killed when the thread that forked this process ends; raises OSError where its process has ended already."""
    check(_libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0), "")
    # A parent of another PID namespace has no number here that would change with its death.
    if select.select([parent], [], [], 0)[0]:
        raise OSError(3, os.strerror(3))
