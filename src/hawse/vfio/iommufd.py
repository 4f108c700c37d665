"""What the host's /dev/iommu can do, asked of it: versions are not proof, distributions carry features over."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable

#: IOMMU_IOAS_MAP_FILE: type ';', command 0x8f, no direction or size in the number (Linux include/uapi/linux/iommufd.h).
_MAP_FILE = 0x3B8F
#: A size of its argument that no command has: one that is known fails with EINVAL before it looks at more.
_NO_SIZE = bytes(4)


def maps_files(*, root: str = "", ioctl: Callable[[int, int, bytes], object] = fcntl.ioctl) -> bool:
    """Whether memory can be mapped by its file, as since Linux 6.13. ``ioctl`` is ioctl(2).

    An unknown command is answered with ENOTTY (drivers/iommu/iommufd/main.c, iommufd_fops_ioctl()). Where it cannot be
    asked, it is not known to be unable.
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
