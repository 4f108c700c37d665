"""What sysfs says about PCI functions and IOMMU groups. Shared by host and guest; every reader takes ``root=``.

Paths: Linux Documentation/ABI/testing/sysfs-bus-pci, sysfs-kernel-iommu_groups, and driver-api/vfio.rst.
"""

from __future__ import annotations

import os


def read_number(address: str, attribute: str, *, root: str = "") -> int:
    """A number of a PCI function such as "vendor"; raises OSError or ValueError where there is none."""
    with open(f"{root}/sys/bus/pci/devices/{address}/{attribute}") as file:
        return int(file.read(64), 0)


def driver(address: str, *, root: str = "") -> str:
    """The name of the driver that has the function; "" when none has."""
    return _link_name(f"{root}/sys/bus/pci/devices/{address}/driver")


def iommu_group(address: str, *, root: str = "") -> int | None:
    """The number of the function's IOMMU group; None when it is in none."""
    name = _link_name(f"{root}/sys/bus/pci/devices/{address}/iommu_group")
    return int(name) if name.isdigit() else None


def group_members(group: int, *, root: str = "") -> list[str]:
    """The addresses of all devices of a group, bridges included, sorted; empty when there is no such group."""
    try:
        return sorted(os.listdir(f"{root}/sys/kernel/iommu_groups/{group}/devices"))
    except FileNotFoundError:
        return []


def group_numbers(group: int, *, root: str = "") -> tuple[int, int] | None:
    """Major and minor of /dev/vfio/<group>; None when no function of the group is on a VFIO driver."""
    try:
        with open(f"{root}/sys/class/vfio/{group}/dev") as file:
            major, _, minor = file.read(64).strip().partition(":")
    except FileNotFoundError:
        return None
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else None


def character_device(major: int, minor: int, *, root: str = "") -> str:
    """The kernel's name of a character device, "vfio/5" for a group, "misc/vfio" for the container; "" when unknown."""
    try:
        target = os.readlink(f"{root}/sys/dev/char/{major}:{minor}")
    except OSError:
        return ""
    parts = target.rstrip("/").split("/")
    return "/".join(parts[-2:])


def _link_name(path: str) -> str:
    try:
        return os.path.basename(os.readlink(path))
    except OSError:
        return ""
