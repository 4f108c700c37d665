"""The disks of emulated NVMe controllers: memory that goes with its virtual machine, of a size that stays."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable

MIB = 1024 * 1024
DISK_BYTES = 64 * MIB


def make() -> int:
    """A descriptor of a new disk, which is zeros: memfd_create(2), without pages yet. Raises OSError.

    It is sealed, so that QEMU can change its content and never its size. Its pages count for the cgroup of QEMU.
    """
    fd = os.memfd_create("hawse-disk", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, DISK_BYTES)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    except OSError:
        os.close(fd)
        raise
    return fd


def total_mib(models: Iterable[str]) -> int:
    """What the disks of such devices may have in all, in MiB."""
    return sum(DISK_BYTES // MIB for model in models if model == "nvme")
