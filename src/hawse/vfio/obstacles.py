"""Obstacles to passing a group that do not depend on the drivers of its functions. All callers use this one check."""

from __future__ import annotations

from dataclasses import dataclass

from hawse.errors import DeviceError
from hawse.vfio import groups, interrupts, resets, sysfs
from hawse.vfio.groups import HostGroup


@dataclass(frozen=True)
class Accepted:
    """The risks that an administrator accepts by ``devices.unsafe_interrupts`` and ``devices.unresettable``."""

    unsafe_interrupts: bool = False
    unresettable: bool = False


NOTHING = Accepted()


def check(group: HostGroup, *, accepted: Accepted = NOTHING, root: str = "") -> None:
    """Raise :class:`DeviceError` for an obstacle that binding the group's functions to vfio-pci does not remove."""
    addresses = ", ".join(function.address for function in group.functions)
    if sysfs.lacks_iommu(group.number, root=root):
        raise DeviceError(
            f"group {group.number} ({addresses}): a device without an IOMMU cannot be passed to a VM",
            hint="enable the host's IOMMU",
        )
    if regions := _direct_regions(group.number, root):
        raise DeviceError(
            f"group {group.number} ({addresses}): its firmware requires memory at fixed addresses ({regions[0]}), "
            "which a VM cannot provide",
            hint="look for a firmware setting for shared memory (RMRR) or for DMA protection before boot",
        )
    groups.check_bridges(group)
    functions = [function.address for function in group.functions]
    interrupts.check(group.number, functions, accepted=accepted.unsafe_interrupts, root=root)
    resets.check(group, accepted=accepted.unresettable, root=root)


def check_token(group: HostGroup, token: str) -> None:
    """Raise :class:`DeviceError` if a virtual function needs the VF token of its physical function and ``token`` is "".

    The kernel answers EACCES if a needed token is missing, and EINVAL to a token that is not needed (Linux
    drivers/vfio/pci/vfio_pci_core.c, vfio_pci_validate_vf_token()). A PF on vfio-pci has a random token, which its
    program replaces.
    """
    for function in group.functions:
        if function.physical_driver == "vfio-pci" and not token:
            raise DeviceError(
                f"{function.address} of group {group.number} is a virtual function of {function.physical}, which is "
                "bound to vfio-pci itself: the function cannot be opened without the PF's token",
                hint="set the annotation hawse.vf-token to the UUID that the PF's program has set; "
                "devices.annotations in the configuration has to list this annotation",
            )


def _direct_regions(number: int, root: str) -> list[str]:
    """The regions that a device must be able to access at their physical addresses, each as "start to end".

    These are those of the type "direct". "direct-relaxable" regions are needed only during boot (Linux
    Documentation/ABI/testing/sysfs-kernel-iommu_groups). VFIO gets EINVAL for a group with a "direct" region
    (drivers/iommu/iommu.c, __iommu_device_set_domain()). Before Linux had this check, intel-iommu returned EPERM.
    """
    try:
        with open(f"{root}/sys/kernel/iommu_groups/{number}/reserved_regions") as file:
            fields = [line.split() for line in file.read(65536).splitlines()]
    except OSError:
        return []
    return [f"{line[0]} to {line[1]}" for line in fields if len(line) == 3 and line[2] == "direct"]
