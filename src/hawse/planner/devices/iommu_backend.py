"""By which of VFIO's two interfaces QEMU has a group of the host: the group's node, or device files and /dev/iommu."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from hawse.errors import DeviceError
from hawse.planner.devices.options import DeviceOptions
from hawse.planner.devices.vfio import Group
from hawse.vfio import sysfs
from hawse.vfio.driver_names import is_vfio
from hawse.vfio.groups import HostGroup
from hawse.vfio.host import iommufd
from hawse.vfio.node import VfioNode
from hawse.vm.capabilities import Capabilities


def by_file(
    groups: Sequence[Group],
    files: Sequence[VfioNode],
    options: DeviceOptions,
    ask: Callable[[], Capabilities],
    *,
    maps_files: Callable[[], bool] = iommufd.maps_files,
    root: str = "",
) -> tuple[frozenset[int], list[str]]:
    """The groups that QEMU has by their device files, and what to warn of.

    Those that were asked for by one, where that can be, else none; devices.backend may say all, or none at all. Raises
    :class:`DeviceError` where all are to be and one cannot. ``ask`` asks QEMU what it can do, and ``maps_files`` the
    kernel, where that matters.
    """
    if options.backend == "group":
        return frozenset(), []
    asked = {file.host_group for file in files}
    chosen, warnings = set(), []
    for group in groups:
        if not isinstance(group, HostGroup) or (options.backend == "auto" and group.number not in asked):
            continue
        obstacle = _obstacle(group, options, ask, maps_files, root)
        if not obstacle:
            chosen.add(group.number)
        elif options.backend == "iommufd":
            raise DeviceError(
                f"group {group.number} cannot be passed by its device files: {obstacle}",
                hint='devices.backend = "auto" takes the group\'s node then',
            )
        else:
            node = f"/dev/vfio/{group.number}"
            warnings.append(f"group {group.number} is passed by {node}, not by its device files: {obstacle}")
    return frozenset(chosen), warnings


def _obstacle(
    group: HostGroup,
    options: DeviceOptions,
    ask: Callable[[], Capabilities],
    maps_files: Callable[[], bool],
    root: str,
) -> str:
    """Why QEMU cannot have the group by its device files; "" where it can."""
    if not os.path.exists(f"{root}/dev/iommu"):
        return "this host has no /dev/iommu (CONFIG_IOMMUFD)"
    can = ask()
    if "iommufd" not in can.objects:
        return f"QEMU {can.version} has no backend iommufd: 9.0 is the first that has"
    # It does not go back to another call where the kernel has not this one, and the guest hears nothing of it: its
    # device cannot reach its memory (QEMU hw/vfio/container.c, vfio_container_dma_map()).
    if can.at_least(10, 1) and not maps_files():
        return f"QEMU {can.version} maps memory by its file, which this kernel cannot: Linux 6.13 is the first that can"
    for function in group.functions:
        to_come = options.managed and not is_vfio(function.driver)
        if not to_come and sysfs.device_file(function.address, root=root) is None:
            return f"{function.address} has none (CONFIG_VFIO_DEVICE_CDEV)"
        if function.physical_driver == "vfio-pci":
            return f"the token of {function.address} opens its group alone"
    return ""
