"""The limit of DMA mappings that the host kernel keeps for one VFIO container. All functions take ``root=``.

With a vIOMMU, each page that the guest maps is one mapping on the host: QEMU makes one call for each entry of the
guest's IOMMU page table (QEMU hw/i386/intel_iommu.c, vtd_page_walk_level()). The kernel refuses mappings beyond a
limit, which it reads when the VFIO container gets its IOMMU (Linux drivers/vfio/vfio_iommu_type1.c, dma_entry_limit;
65535 by default, which is 256 MiB of 4 KiB pages). The refusal is not reported to the guest: the mapping exists in the
guest, but its DMA is lost.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable
from contextlib import suppress

_PAGE = 4096
_DEFAULT = 65535
_LOCK = "/run/hawse.dma"


def entries(memory_mib: int) -> int:
    """The number of mappings that programs in a guest of this size may need.

    That is one for each page of its memory, a quarter more for pages that are mapped twice, and the kernel's default.
    """
    return (memory_mib << 20) // _PAGE * 5 // 4 + _DEFAULT


def limit(*, root: str = "") -> int:
    """The host's limit, -1 if the kernel module is not loaded."""
    try:
        with open(parameter(root=root)) as file:
            return int(file.read(64))
    except (OSError, ValueError):
        return -1


def raise_limit(mappings: int, *, root: str = "") -> None:
    """Raise the host's limit to this number of mappings; a higher limit is kept.

    The limit is never lowered again: other sandboxes may be about to open VFIO, and a limit costs nothing until
    mappings are created. Raises OSError if the parameter cannot be written.
    """
    # Without a lock, two monitors that raise the limit at the same time could lower each other's. Only root can open
    # the lock file. The parameter itself must not be the lock: every user can open it for reading and lock it
    # (flock(2)), and the monitor would wait for that user.
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    with os.fdopen(os.open(f"{root}{_LOCK}", flags, 0o600), "r+") as lock, open(parameter(root=root), "r+") as file:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if int(file.read(64)) < mappings:
            os.pwrite(file.fileno(), f"{mappings}\n".encode(), 0)


def try_to_raise(entries_of: Iterable[int], *, root: str = "") -> None:
    """Raise the limit to the largest of these numbers. To be called before QEMU opens VFIO.

    A failure is ignored: the plan has warned of it (:func:`warning`).
    """
    mappings = max(entries_of, default=0)
    if mappings:
        with suppress(OSError, ValueError):
            raise_limit(mappings, root=root)


def warning(mappings: int, *, root: str = "") -> str:
    """A warning about a limit that hawse cannot raise to this number; "" if it is high enough or can be raised."""
    path, present = parameter(root=root), limit(root=root)
    return "" if not 0 <= present < mappings or _is_writable(path) else sentence(present, mappings, path)


def sentence(present: int, mappings: int, path: str) -> str:
    """The warning about a limit that is lower than the number of ``mappings``."""
    return (
        f"a program that maps more than {present} pages for its device will lose DMA: dma_entry_limit of the "
        f"module vfio_iommu_type1 cannot be raised [run `echo {mappings} > {path}` on the host]"
    )


def parameter(*, root: str = "") -> str:
    """The path of the limit in sysfs."""
    return f"{root}/sys/module/vfio_iommu_type1/parameters/dma_entry_limit"


def _is_writable(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_WRONLY))
    except OSError:
        return False
    return True
