"""Landlock: a process that has opened all its files gives up the right to open others (Linux 5.13).

Facts: Linux Documentation/userspace-api/landlock.rst. Standard library only.
"""

from __future__ import annotations

import ctypes
import os

from hawse.linux.libc import check, libc

#: System call numbers, the same on every architecture.
_SYS_CREATE_RULESET, _SYS_RESTRICT_SELF = 444, 446
_CREATE_RULESET_VERSION = 1
#: The number of file access rights by ABI version: 13 in version 1; later versions add REFER, TRUNCATE, and IOCTL_DEV.
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
_NEWEST_FILE_RIGHTS = 16
#: Bit masks: TCP bind and connect, since version 4; abstract UNIX sockets and signals to other processes, since 6.
_NETWORK, _SCOPES = 3, 3


def restrict(*, create_ruleset: int = _SYS_CREATE_RULESET) -> bool:
    """Deny the calling thread all access to files, TCP ports and other processes that the kernel can deny.

    Open file descriptors stay usable. Returns False if the kernel does not support Landlock. The thread must have
    no_new_privs or CAP_SYS_ADMIN. ``create_ruleset``: the number of landlock_create_ruleset(2). Raises OSError.
    """
    version = libc.syscall(create_ruleset, None, 0, _CREATE_RULESET_VERSION)
    if version < 1:
        return False
    files = (1 << _FILE_RIGHTS.get(version, _NEWEST_FILE_RIGHTS)) - 1
    fields = [files, _NETWORK if version >= 4 else 0, _SCOPES if version >= 6 else 0]
    size = 8 * (3 if version >= 6 else 2 if version >= 4 else 1)
    attributes = (ctypes.c_uint64 * 3)(*fields)
    ruleset = check(libc.syscall(create_ruleset, attributes, ctypes.c_size_t(size), 0), "landlock_create_ruleset")
    try:
        check(libc.syscall(_SYS_RESTRICT_SELF, ruleset, 0), "landlock_restrict_self")
    finally:
        os.close(ruleset)
    return True
