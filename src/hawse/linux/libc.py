"""The C library, for system calls that Python does not offer. All of hawse's ctypes calls go through it.

Memory safety: each pointer that is passed to the kernel is that of an object which lives for the length of the call.
"""

from __future__ import annotations

import ctypes
import os

libc = ctypes.CDLL(None, use_errno=True)

#: Flags of clone(2), unshare(2) and setns(2) (Linux include/uapi/linux/sched.h).
CLONE_FS, CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS = 0x200, 0x20000, 0x2000000, 0x4000000
CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x8000000, 0x10000000, 0x20000000, 0x40000000
#: ioctl(2) on a file of /proc/PID/ns: the kind of its namespace (include/uapi/linux/nsfs.h).
NS_GET_NSTYPE = 0xB703


def check(result: int, what: str) -> int:
    """The result of a call. Raises OSError whose ``filename`` is ``what`` if the call has failed."""
    if result < 0:
        raise failure(what)
    return result


def failure(what: str) -> OSError:
    """The error of the last call, about a path or the name of the call."""
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), what)
