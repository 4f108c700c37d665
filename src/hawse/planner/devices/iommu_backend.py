"""Choose how QEMU opens a group of the host: by the group's node, or by device files and /dev/iommu."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from hawse.errors import DeviceError
from hawse.planner.devices.device_options import DeviceOptions
from hawse.vfio import sysfs
from hawse.vfio.driver_names import is_vfio
from hawse.vfio.groups import HostGroup
from hawse.vfio.host import iommufd
from hawse.vfio.node import VfioNode
from hawse.vfio.requests import Group
from hawse.vm.qemu_features import Capabilities


def by_file(
    groups: Sequence[Group],
    files: Sequence[VfioNode],
    options: DeviceOptions,
    ask: Callable[[], Capabilities],
    *,
    maps_files: Callable[[], bool] = iommufd.maps_files,
    root: str = "",
) -> tuple[frozenset[int], list[str]]:
    """Return the groups that QEMU opens by their device files, and warnings.

    By default these are the groups that were requested by a device file, if their device files can be used.
    devices.backend can select all groups or none. Raises :class:`DeviceError` if it selects all, and one cannot be
    opened by its device files. ``ask`` returns QEMU's capabilities. ``maps_files`` tests the kernel, for QEMU versions
    that need it.
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
                hint='with devices.backend = "auto", QEMU opens the group\'s node instead',
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
    """The reason why QEMU cannot open the group by its device files; "" if it can."""
    if not os.path.exists(f"{root}/dev/iommu"):
        return "this host has no /dev/iommu (CONFIG_IOMMUFD)"
    can = ask()
    if "iommufd" not in can.objects:
        return f"QEMU {can.version} has no iommufd backend, which 9.0 introduced"
    # QEMU does not fall back to another ioctl if the kernel lacks this one. The guest gets no error, but its device
    # cannot access its memory (QEMU hw/vfio/container.c, vfio_container_dma_map()).
    if can.at_least(10, 1) and not maps_files():
        return f"QEMU {can.version} maps memory by its file, which needs Linux 6.13 or later"
    for function in group.functions:
        will_be_bound = options.managed and not is_vfio(function.driver)
        if not will_be_bound and sysfs.device_file(function.address, root=root) is None:
            return f"{function.address} has no device file (CONFIG_VFIO_DEVICE_CDEV)"
        if function.physical_driver == "vfio-pci":
            return f"{function.address} needs a token, which works only with its group"
    return ""
