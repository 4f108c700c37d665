"""Attributes that this process has inherited from its caller (resource limits, oom_score_adj, umask), and the kernel's
settings that protect files and links."""

from __future__ import annotations

import os
import resource
from contextlib import suppress

#: Resource limits of getrlimit(2), in the order of their numbers in Linux include/uapi/asm-generic/resource.h. Python
#: has no name for RLIMIT_LOCKS.
RLIMITS = (
    "RLIMIT_CPU", "RLIMIT_FSIZE", "RLIMIT_DATA", "RLIMIT_STACK", "RLIMIT_CORE", "RLIMIT_RSS", "RLIMIT_NPROC",
    "RLIMIT_NOFILE", "RLIMIT_MEMLOCK", "RLIMIT_AS", "RLIMIT_LOCKS", "RLIMIT_SIGPENDING", "RLIMIT_MSGQUEUE",
    "RLIMIT_NICE", "RLIMIT_RTPRIO", "RLIMIT_RTTIME",
)  # fmt: skip
#: RLIM_INFINITY (getrlimit(2)), which Python returns as -1.
INFINITY = 2**64 - 1


def rlimits() -> dict[str, tuple[int, int]]:
    """This process's limits by name: (soft, hard); :data:`INFINITY` means unlimited."""
    limits = {}
    for number, name in enumerate(RLIMITS):
        soft, hard = (value % 2**64 for value in resource.getrlimit(number))
        limits[name] = (soft, hard)
    return limits


def oom_score_adj(path: str = "/proc/self/oom_score_adj") -> int:
    """This process's oom_score_adj (proc(5)); 0 if it cannot be read."""
    try:
        with open(path) as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0


def protected_files(directory: str = "/proc/sys/fs") -> dict[str, str]:
    """The kernel's settings that refuse dangerous links, FIFOs and files of other users, by name; only those that the
    kernel supports (Linux Documentation/admin-guide/sysctl/fs.rst, protected_*)."""
    settings = {}
    for name in ("hardlinks", "symlinks", "fifos", "regular"):
        with suppress(OSError), open(f"{directory}/protected_{name}") as file:
            settings[name] = file.read().strip()
    return settings


def umask() -> int:
    """This process's umask. It is changed and restored, since umask(2) returns only the previous value. So the process
    must be single-threaded."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
