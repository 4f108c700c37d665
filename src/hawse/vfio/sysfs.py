"""Read the attributes of PCI functions and IOMMU groups in sysfs. Used on host and guest; all functions take ``root=``.

Paths: Linux Documentation/ABI/testing/sysfs-bus-pci, sysfs-kernel-iommu_groups, and driver-api/vfio.rst.
"""

from __future__ import annotations

import os


def explain(error: OSError | ValueError) -> str:
    """The reason why an attribute could not be read, for an error message. A ValueError means invalid content."""
    if not isinstance(error, OSError):
        return "invalid content"
    reason = error.strerror or str(error)
    return f"{error.filename}: {reason}" if error.filename else reason


def text(path: str) -> str:
    """The content of a small file without surrounding whitespace; "" if it cannot be read or is not text."""
    try:
        with open(path) as file:
            return file.read(256).strip()
    except (OSError, UnicodeDecodeError):
        return ""


def entries(path: str) -> list[str]:
    """The names in a directory; empty if it cannot be read."""
    try:
        return os.listdir(path)
    except OSError:
        return []


def read_number(address: str, attribute: str, *, root: str = "") -> int:
    """A numeric attribute of a PCI function, such as "vendor". Raises OSError or ValueError if it cannot be read."""
    with open(f"{root}/sys/bus/pci/devices/{address}/{attribute}") as file:
        return int(file.read(64), 0)


def driver(address: str, *, root: str = "") -> str:
    """The name of the function's driver; "" for none."""
    return _link_name(f"{root}/sys/bus/pci/devices/{address}/driver")


def iommu_group(address: str, *, root: str = "") -> int | None:
    """The number of the function's IOMMU group; None for none."""
    name = _link_name(f"{root}/sys/bus/pci/devices/{address}/iommu_group")
    return int(name) if name.isdigit() else None


def group_members(group: int, *, root: str = "") -> list[str]:
    """The addresses of all devices of a group, including bridges, sorted; empty if the group does not exist."""
    try:
        return sorted(os.listdir(f"{root}/sys/kernel/iommu_groups/{group}/devices"))
    except FileNotFoundError:
        return []


def lacks_iommu(group: int, *, root: str = "") -> bool:
    """Whether VFIO has created the group for a device without an IOMMU.

    VFIO gives such a group a special name (Linux drivers/vfio/group.c, vfio_noiommu_group_alloc()).
    """
    try:
        with open(f"{root}/sys/kernel/iommu_groups/{group}/name") as file:
            return file.read(64).strip() == "vfio-noiommu"
    except OSError:
        return False


def group_numbers(group: int, *, root: str = "") -> tuple[int, int] | None:
    """Major and minor of /dev/vfio/<group>; None if no function of the group is bound to a VFIO driver."""
    return _numbers(f"{root}/sys/class/vfio/{group}/dev")


def bar_sizes(address: str, *, root: str = "") -> list[int]:
    """The sizes of a function's six BARs in bytes (Linux Documentation/PCI/sysfs-pci.rst, ``resource``).

    The size is 0 for a BAR that the function does not have, or for which the kernel found no address space.
    """
    with open(f"{root}/sys/bus/pci/devices/{address}/resource") as file:
        ranges = [[int(number, 16) for number in line.split()[:2]] for line in file.readlines()[:6]]
    return [end - start + 1 if end else 0 for start, end in ranges]


def device_file(address: str, *, root: str = "") -> tuple[int, int, int] | None:
    """K, major and minor of /dev/vfio/devices/vfio<K>, the device file of a function; None if it has none.

    The directory vfio-dev exists with every VFIO driver, but the file with the numbers only on a kernel with
    CONFIG_VFIO_DEVICE_CDEV (Linux drivers/vfio/device_cdev.c, vfio_init_device_cdev()).
    """
    directory = f"{root}/sys/bus/pci/devices/{address}/vfio-dev"
    try:
        names = os.listdir(directory)
    except OSError:
        return None
    for name in names:
        numbers = _numbers(f"{directory}/{name}/dev")
        if numbers and name.startswith("vfio") and name[4:].isdigit():
            return (int(name[4:]), *numbers)
    return None


def iommu_numbers(*, root: str = "") -> tuple[int, int] | None:
    """Major and minor of /dev/iommu, which device files need; None on a kernel without IOMMUFD."""
    return _numbers(f"{root}/sys/class/misc/iommu/dev")


def character_device(major: int, minor: int, *, root: str = "") -> str:
    """The kernel's name of a character device: "vfio/5" for a group, "misc/vfio" for the container; "" if unknown."""
    try:
        target = os.readlink(f"{root}/sys/dev/char/{major}:{minor}")
    except OSError:
        return ""
    parts = target.rstrip("/").split("/")
    return "/".join(parts[-2:])


def _numbers(path: str) -> tuple[int, int] | None:
    try:
        with open(path) as file:
            major, _, minor = file.read(64).strip().partition(":")
    except FileNotFoundError:
        return None
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else None


def _link_name(path: str) -> str:
    try:
        return os.path.basename(os.readlink(path))
    except OSError:
        return ""
