"""How much memory QEMU may lock: VFIO locks every page that a guest maps for a device of the host."""

from __future__ import annotations

import resource

#: Bits of CapEff (include/uapi/linux/capability.h): with the first VFIO does not count (drivers/vfio/
#: vfio_iommu_type1.c, vfio_lock_acct()), with the second the limit can be lifted (setrlimit(2)).
_CAP_IPC_LOCK, _CAP_SYS_RESOURCE = 1 << 14, 1 << 24


def warning(limit: int, capabilities: int, *, confined: bool) -> str:
    """A warning about a limit that stops programs from mapping memory, "" for none.

    ``limit`` is the hard limit in bytes, -1 for no limit. ``confined``: QEMU runs without capabilities, so that
    CAP_IPC_LOCK of this process does not help it.
    """
    helpful = _CAP_SYS_RESOURCE if confined else _CAP_IPC_LOCK | _CAP_SYS_RESOURCE
    if limit == resource.RLIM_INFINITY or capabilities & helpful:
        return ""
    return (
        f"a program that maps more than {limit // 1024} KiB for its device will fail: RLIMIT_MEMLOCK cannot be raised "
        "for QEMU [start the engine with LimitMEMLOCK=infinity, or give hawse CAP_SYS_RESOURCE]"
    )


def read() -> tuple[int, int]:
    """This process's hard limit and its effective capabilities."""
    with open("/proc/self/status") as file:
        [mask] = [line.split()[1] for line in file if line.startswith("CapEff:")]
    return resource.getrlimit(resource.RLIMIT_MEMLOCK)[1], int(mask, 16)
