"""The disks of emulated NVMe controllers: memory of a fixed size that ends with its VM."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable

MIB = 1024 * 1024
DISK_BYTES = 64 * MIB


def make() -> int:
    """Create a disk full of zeros: the file descriptor of a memfd_create(2) without pages yet. Raises OSError.

    It is sealed, so that QEMU can change its content but not its size. Its pages are charged to QEMU's cgroup.
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
    """The maximum memory of all disks of these device models together, in MiB."""
    return sum(DISK_BYTES // MIB for model in models if model == "nvme")
