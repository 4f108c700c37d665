"""From a function that the host is about to plug to a VFIO group that a container can open.

The order is fixed and each link is looked at in sysfs: device at its address → driver link is vfio-pci → iommu_group
link → /dev/vfio/<group> with the numbers of /sys/class/vfio. The error names the last link that was reached.
"""

from __future__ import annotations

import os
import time

from hawse.agent import trace
from hawse.agent.uevents import Uevents
from hawse.errors import DeviceError
from hawse.vfio import sysfs

DRIVER = "vfio-pci"
VIRTIO = "virtio-pci"
_BIND_SECONDS = 10.0


def bind_vfio(uevents: Uevents, address: str, *, seconds: float, root: str = "") -> dict[str, int]:
    """Wait for the function, give it to vfio-pci, wait for its group: {"group", "major", "minor"} of its node."""
    deadline = time.monotonic() + seconds
    with trace.span(f"{address} appears"):
        _await_device(uevents, address, seconds=seconds, deadline=deadline, root=root)
    with trace.span(f"{address} bound to {DRIVER}"):
        _bind(uevents, address, DRIVER, deadline=min(deadline, time.monotonic() + _BIND_SECONDS), root=root)
    if not uevents.wait_until(lambda: sysfs.iommu_group(address, root=root) is not None, deadline=deadline):
        raise DeviceError(
            f"{address}: bound to {DRIVER} in the guest, but no iommu_group link appeared within {seconds:g} s",
            hint="the guest has no working IOMMU; its console log has lines of DMAR",
        )
    group = sysfs.iommu_group(address, root=root)
    assert group is not None
    numbers: tuple[int, int] | None = None

    def node_is_there() -> bool:
        nonlocal numbers
        numbers = sysfs.group_numbers(group, root=root)
        return numbers is not None and os.path.exists(f"{root}/dev/vfio/{group}")

    if not uevents.wait_until(node_is_there, deadline=deadline) or numbers is None:
        raise DeviceError(f"{address}: in the guest's group {group}, but /dev/vfio/{group} did not appear")
    return {"group": group, "major": numbers[0], "minor": numbers[1]}


def bind_virtio(uevents: Uevents, address: str, *, seconds: float, root: str = "") -> None:
    """Wait for a virtio function and give it to virtio's driver, whose own bus probes by itself."""
    deadline = time.monotonic() + seconds
    _await_device(uevents, address, seconds=seconds, deadline=deadline, root=root)
    _bind(uevents, address, VIRTIO, deadline=min(deadline, time.monotonic() + _BIND_SECONDS), root=root)


def _await_device(uevents: Uevents, address: str, *, seconds: float, deadline: float, root: str) -> None:
    device = f"{root}/sys/bus/pci/devices/{address}"
    if not uevents.wait_until(lambda: os.path.exists(f"{device}/driver_override"), deadline=deadline):
        raise DeviceError(
            f"{address}: the device did not appear in the guest within {seconds:g} s",
            hint="the guest's console log tells whether its PCI hotplug saw the device and found room for its BARs",
        )


def _bind(uevents: Uevents, address: str, driver: str, *, deadline: float, root: str) -> None:
    """Have a driver probe the function, and see that it took it.

    Its directory and uevent come before the kernel lets any driver match it (pci_device_add(), then
    pci_bus_add_device(), in drivers/pci/probe.c and bus.c), and a probe that finds no driver is no error of the write.
    So the link alone counts, and the probe is repeated until it is there.
    """

    device = f"{root}/sys/bus/pci/devices/{address}"

    def is_bound() -> bool:
        if sysfs.driver(address, root=root) == driver:
            return True
        _write(f"{root}/sys/bus/pci/drivers_probe", address)
        return sysfs.driver(address, root=root) == driver

    try:
        _write(f"{device}/driver_override", driver)
        if sysfs.driver(address, root=root) not in ("", driver):
            _write(f"{device}/driver/unbind", address)
        bound, reason = uevents.wait_until(is_bound, deadline=deadline), f"its probe failed for {_BIND_SECONDS:g} s"
    except OSError as error:
        bound, reason = False, os.strerror(error.errno or 0)
    if not bound:
        raise DeviceError(
            f"{address}: appeared in the guest, but refuses to bind to {driver}: {reason}",
            hint="the guest's console log has the driver's reason",
        )


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
