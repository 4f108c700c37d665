"""Block devices of the host in the guest: virtio-blk disks, found in sysfs by their PCI addresses."""

from __future__ import annotations

import glob
import time

from hawse.agent.devices import hardware
from hawse.agent.system.uevents import Uevents
from hawse.errors import DeviceError


def bind_disk(uevents: Uevents, address: str, *, seconds: float, root: str = "") -> dict[str, int]:
    """Wait for the function, bind it to virtio's driver, wait for its disk. Returns the numbers of the disk's node."""
    deadline = time.monotonic() + seconds
    hardware.bind_virtio(uevents, address, seconds=seconds, root=root)
    numbers: dict[str, int] = {}

    def disk_exists() -> bool:
        numbers.update(numbers_in(f"{root}/sys/bus/pci/devices/{address}/virtio*/block/*/dev") or {})
        return bool(numbers)

    if not uevents.wait_until(disk_exists, deadline=deadline):
        raise DeviceError(
            f"{address}: bound to {hardware.VIRTIO}, but no disk appeared within {seconds:g} s",
            hint="the guest's console log shows whether virtio_blk accepted the device",
        )
    return numbers


def numbers_in(pattern: str) -> dict[str, int] | None:
    """Major and minor in the first readable file of sysfs that matches the pattern; None if there is none."""
    for path in glob.glob(pattern):
        try:
            with open(path) as file:
                major, _, minor = file.read().strip().partition(":")
        except OSError:
            continue  # the disk has been removed
        if major.isdigit() and minor.isdigit():
            return {"major": int(major), "minor": int(minor)}
    return None
