"""The limit of memory that QEMU may lock: VFIO locks every page that a guest maps for a device of the host."""

from __future__ import annotations

import resource

#: Bits of CapEff (include/uapi/linux/capability.h). VFIO does not count the locked memory of a process with the first
#: (drivers/vfio/vfio_iommu_type1.c, vfio_lock_acct()); the second permits raising the limit (setrlimit(2)).
_CAP_IPC_LOCK, _CAP_SYS_RESOURCE = 1 << 14, 1 << 24


def warning(limit: int, capabilities: int, *, confined: bool) -> str:
    """A warning about a limit that prevents programs from mapping memory, "" for none.

    ``limit`` is the hard limit in bytes, -1 for no limit. ``confined``: QEMU runs without capabilities, so
    CAP_IPC_LOCK of this process does not help QEMU.
    """
    sufficient = _CAP_SYS_RESOURCE if confined else _CAP_IPC_LOCK | _CAP_SYS_RESOURCE
    if limit == resource.RLIM_INFINITY or capabilities & sufficient:
        return ""
    return (
        f"a program that maps more than {limit // 1024} KiB for its device will fail: RLIMIT_MEMLOCK cannot be raised "
        "for QEMU [start the engine with LimitMEMLOCK=infinity, or give hawse CAP_SYS_RESOURCE]"
    )


def read() -> tuple[int, int]:
    """The hard RLIMIT_MEMLOCK of this process in bytes, and its effective capabilities as bits."""
    with open("/proc/self/status") as file:
        [mask] = [line.split()[1] for line in file if line.startswith("CapEff:")]
    return resource.getrlimit(resource.RLIMIT_MEMLOCK)[1], int(mask, 16)
