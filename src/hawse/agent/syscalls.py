"""The system calls that Python lacks. All of the guest's ctypes is here.

Memory safety: every pointer handed to the kernel is a NUL-terminated ``bytes`` that lives for the length of the call.
"""

from __future__ import annotations

import ctypes
import os

MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_MOVE = 2, 4, 8, 4096, 8192

_PR_SET_CHILD_SUBREAPER = 36
_RB_POWER_OFF = 0x4321FEDC
_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: str, kind: str, flags: int = 0, data: str = "") -> None:
    """mount(2); raises OSError naming the target."""
    if _libc.mount(
        source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags), data.encode() or None
    ):
        _fail(target)


def become_subreaper() -> None:
    """Orphans of this process's descendants become its children, as they do of PID 1."""
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        _fail("prctl")


def power_off() -> None:
    """End the virtual machine at once. What must be on the disk is synced by the caller."""
    _libc.reboot(ctypes.c_int(_RB_POWER_OFF))


def _fail(what: str) -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number), what)
