"""Groups that the command line or an annotation names, by number or by PCI address."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from hawse.errors import DeviceError, UsageError
from hawse.vfio import sysfs
from hawse.vfio.bind.targets import parse_address
from hawse.vfio.emulated import EmulatedGroup
from hawse.vfio.groups import read_group
from hawse.vfio.requests import Group


def find_groups(targets: Sequence[str], emulated: Mapping[int, EmulatedGroup], *, root: str = "") -> list[Group]:
    """Find groups by number or address, each once. Raises :class:`UsageError` or :class:`DeviceError`."""
    groups: dict[int, Group] = {}
    for target in targets:
        if is_number(target):
            number = int(target)
        else:
            address = read_address(target)
            iommu_group = sysfs.iommu_group(address, root=root)
            if iommu_group is None:
                exists = os.path.exists(f"{root}/sys/bus/pci/devices/{address}")
                why = "is not in an IOMMU group" if exists else "is not a PCI function of this host"
                raise DeviceError(f"{address} {why}", hint="`hawse devices` lists those that can be passed")
            number = iommu_group
        groups[number] = emulated[number] if number in emulated else read_group(number, root=root)
    return list(groups.values())


def read_address(target: str) -> str:
    """Parse a target that is a PCI address. Raises :class:`UsageError`."""
    try:
        return parse_address(target)
    except UsageError:
        raise UsageError(
            f"{target[:80]!r} is neither a group's number nor a PCI address",
            hint="give 17 or 0000:3b:00.0: `hawse devices` lists them",
        ) from None


def is_number(target: str) -> bool:
    """Whether a target is the number of a group."""
    return target.isascii() and target.isdigit() and len(target) < 10
