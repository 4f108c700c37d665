"""What is in the way of a group, or to be told of it, whoever its functions are bound to: one rule for all who ask."""

from __future__ import annotations

from dataclasses import dataclass

from hawse.errors import DeviceError
from hawse.vfio import groups, interrupts, resets, sysfs
from hawse.vfio.groups import HostGroup


@dataclass(frozen=True)
class Accepted:
    """The risks that an administrator accepts: ``devices.unsafe_interrupts`` and ``devices.unresettable``."""

    unsafe_interrupts: bool = False
    unresettable: bool = False


NOTHING = Accepted()


def check(group: HostGroup, *, accepted: Accepted = NOTHING, root: str = "") -> None:
    """Raise :class:`DeviceError` for an obstacle that remains when the group's functions are bound to vfio-pci."""
    addresses = ", ".join(function.address for function in group.functions)
    if sysfs.lacks_iommu(group.number, root=root):
        raise DeviceError(
            f"group {group.number} ({addresses}): a device without an IOMMU cannot be given to a virtual machine",
            hint="turn the host's IOMMU on",
        )
    if regions := _direct_regions(group.number, root):
        raise DeviceError(
            f"group {group.number} ({addresses}): its firmware wants memory at fixed addresses ({regions[0]}), which "
            "no guest can give",
            hint="look for a setting of the firmware for shared memory (RMRR) or for DMA protection before boot",
        )
    groups.check_bridges(group)
    functions = [function.address for function in group.functions]
    interrupts.check(group.number, functions, accepted=accepted.unsafe_interrupts, root=root)
    resets.check(group, accepted=accepted.unresettable, root=root)


def check_token(group: HostGroup, token: str) -> None:
    """Raise :class:`DeviceError` where a virtual function needs the token of its physical function and there is none.

    The kernel answers EACCES without one and EINVAL to one that is not needed (Linux drivers/vfio/pci/
    vfio_pci_core.c, vfio_pci_validate_vf_token()); a PF on vfio-pci has a random one, which its program replaces.
    """
    for function in group.functions:
        if function.physical_driver == "vfio-pci" and not token:
            raise DeviceError(
                f"{function.address} of group {group.number} is a virtual function of {function.physical}, which is "
                "on vfio-pci itself: it cannot be opened without that one's token",
                hint="give the UUID that the PF's program has set in the annotation hawse.vf-token, which "
                "devices.annotations in the configuration has to list",
            )


def _direct_regions(number: int, root: str) -> list[str]:
    """Regions that a device must be able to reach at their own addresses ("direct"; a "direct-relaxable" one is for
    the boot alone: Linux Documentation/ABI/testing/sysfs-kernel-iommu_groups).

    VFIO gets EINVAL for such a group (drivers/iommu/iommu.c, __iommu_device_set_domain()), from intel-iommu EPERM
    before that was there.
    """
    try:
        with open(f"{root}/sys/kernel/iommu_groups/{number}/reserved_regions") as file:
            fields = [line.split() for line in file.read(65536).splitlines()]
    except OSError:
        return []
    return [f"{line[0]} to {line[1]}" for line in fields if len(line) == 3 and line[2] == "direct"]
