"""Block devices of the host as the guest has them: disks of virtio-blk, found in sysfs by their PCI address."""

from __future__ import annotations

import glob
import time

from hawse.agent.devices import hardware
from hawse.agent.system.uevents import Uevents
from hawse.errors import DeviceError


def bind_disk(uevents: Uevents, address: str, *, seconds: float, root: str = "") -> list[int]:
    """Wait for the function, give it to virtio's driver, wait for its disk: major and minor of the node."""
    deadline = time.monotonic() + seconds
    hardware.bind_virtio(uevents, address, seconds=seconds, root=root)
    numbers: list[int] = []

    def is_there() -> bool:
        numbers[:] = _numbers(f"{root}/sys/bus/pci/devices/{address}/virtio*/block/*/dev")
        return bool(numbers)

    if not uevents.wait_until(is_there, deadline=deadline):
        raise DeviceError(
            f"{address}: bound to {hardware.VIRTIO}, but no disk appeared within {seconds:g} s",
            hint="the guest's console log tells whether virtio_blk took it",
        )
    return numbers


def misc_numbers(name: str, *, root: str = "") -> list[int] | None:
    """The numbers of a misc device of the guest's kernel; None where it has none of that name."""
    return _numbers(f"{root}/sys/class/misc/{name}/dev") or None


def _numbers(pattern: str) -> list[int]:
    for path in glob.glob(pattern):
        try:
            with open(path) as file:
                major, _, minor = file.read().strip().partition(":")
        except OSError:
            continue  # it has gone
        if major.isdigit() and minor.isdigit():
            return [int(major), int(minor)]
    return []
