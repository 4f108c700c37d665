"""Probe the features of the host's /dev/iommu. The kernel version is not enough: distributions backport features."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable

#: IOMMU_IOAS_MAP_FILE: type ';', command 0x8f, no direction or size in the number (Linux include/uapi/linux/iommufd.h).
_MAP_FILE = 0x3B8F
#: The argument begins with its size. No command accepts size 0: a known command fails with EINVAL before reading more.
_NO_SIZE = bytes(4)


def maps_files(*, root: str = "", ioctl: Callable[[int, int, bytes], object] = fcntl.ioctl) -> bool:
    """Whether memory can be mapped by its file (IOMMU_IOAS_MAP_FILE, since Linux 6.13). ``ioctl`` is ioctl(2).

    The kernel answers an unknown command with ENOTTY (drivers/iommu/iommufd/main.c, iommufd_fops_ioctl()). If
    /dev/iommu cannot be opened, the answer is true: nothing shows that the feature is missing.
    """
    try:
        fd = os.open(f"{root}/dev/iommu", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        ioctl(fd, _MAP_FILE, _NO_SIZE)
    except OSError as error:
        return error.errno != errno.ENOTTY
    finally:
        os.close(fd)
    return True
