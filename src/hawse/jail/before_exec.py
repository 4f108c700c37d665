"""The steps that confine a process between fork and exec. Standard library only, and no step takes a lock.

The order matters. Namespaces and mounts need capabilities, so the capabilities are dropped afterwards. A change of the
user id clears the signal for the parent's death (Linux kernel/cred.c, commit_creds()), so it is requested after the
change. The filter of system calls comes last, since it refuses calls that the other steps make.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from dataclasses import dataclass

from hawse.jail import seccomp
from hawse.linux import mounts
from hawse.linux.process_capabilities import drop_bounding, keep_only
from hawse.linux.processes import die_with, give_up_privileges, leave_namespaces

#: Below /proc a process sees only itself (Linux Documentation/filesystems/proc.rst, subset=, since 5.8).
_PROC = "subset=pid,hidepid=invisible"
_SAFE = mounts.NOSUID | mounts.NODEV | mounts.NOEXEC


@dataclass(frozen=True)
class Limits:
    """Resource limits: open files, processes and threads of the user, and the size of written files in bytes."""

    files: int = 8192
    processes: int = 1024
    file_bytes: int = 0


class Failure(OSError):
    """The kernel refused a step; ``strerror`` names the step."""


def enter(root: str, *, user: int, limits: Limits, parent: int) -> None:
    """Enter the jail whose root is mounted at ``root``, as ``user``, without rights outside it.

    Call it in the child of a fork, as the first process of a PID namespace (:class:`ChildrenApart`). ``parent`` is a
    file descriptor of the parent (pidfd_open(2)). Raises :class:`Failure`.
    """
    steps: list[tuple[str, Callable[[], object]]] = [
        ("create namespaces", leave_namespaces),
        ("make the mounts private", lambda: mounts.mount("none", "/", "", mounts.REC | mounts.PRIVATE)),
        ("change the root directory", lambda: mounts.change_root(root)),
        ("mount /proc", lambda: mounts.mount("proc", "/proc", "proc", _SAFE, _PROC)),
        ("set limits", lambda: _limit(limits)),
        ("limit capabilities", drop_bounding),
        ("change the user", lambda: _become(user)),
        # The inheritable capabilities survive a change of the user (capabilities(7)).
        ("drop capabilities", lambda: keep_only(())),
        ("set no_new_privs", give_up_privileges),
        ("set the parent-death signal", lambda: die_with(parent)),
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
