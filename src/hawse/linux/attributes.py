"""Attributes that this process has inherited from its caller: resource limits, oom_score_adj, umask. And the host's
rules for links."""

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
    """The settings by which the kernel refuses links, FIFOs and files of others that may be traps (Linux
    Documentation/admin-guide/sysctl/fs.rst, protected_*), by name; those that it has."""
    found = {}
    for name in ("hardlinks", "symlinks", "fifos", "regular"):
        with suppress(OSError), open(f"{directory}/protected_{name}") as file:
            found[name] = file.read().strip()
    return found


def umask() -> int:
    """This process's umask. It is changed and restored, since umask(2) returns only the previous value: the process
    must have one thread."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
