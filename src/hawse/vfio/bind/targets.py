"""The functions to bind: parse their addresses, check them, and add the other functions of their groups."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from hawse.errors import DeviceError, UsageError
from hawse.vfio import group_members, groups, sysfs
from hawse.vfio.bind import records
from hawse.vfio.driver_names import is_vfio

_ADDRESS = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}:[01][0-9a-f]\.[0-7])", re.IGNORECASE)


@dataclass(frozen=True)
class Target:
    """The present state of a function: its group, its driver and its driver_override ("" for none)."""

    address: str
    group: int
    driver: str
    override: str


def parse_address(text: str) -> str:
    """The address as the kernel writes it: "3B:00.0" is "0000:3b:00.0". Raises :class:`UsageError`."""
    match = _ADDRESS.fullmatch(text)
    if not match:
        raise UsageError(f"{text[:80]!r} is not the address of a PCI function", hint="write it like 0000:3b:00.0")
    return f"{int(match[1] or '0', 16):04x}:{match[2].lower()}"


def exists(address: str, *, root: str = "") -> bool:
    """Whether the host has a function with this address."""
    return os.path.isdir(f"{root}/sys/bus/pci/devices/{address}")


def read_override(address: str, *, root: str = "") -> str:
    """The driver_override of a function; "" for none, which the kernel shows as "(null)". Raises DeviceError."""
    try:
        path = f"{root}/sys/bus/pci/devices/{address}/driver_override"
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            text = file.read(4096).partition("\n")[0]
    except OSError as error:
        raise DeviceError(f"{address}: its driver_override cannot be read: {error.strerror}") from None
    return "" if text == "(null)" else text


def choose(addresses: Sequence[str], *, with_group: bool, root: str = "") -> list[Target]:
    """The functions with these addresses, each once. ``with_group`` adds those of their groups without a VFIO driver.

    Raises :class:`DeviceError` for a function that does not exist, is a bridge, or is not in a group. Without
    ``with_group``, also raises it if a driver of the host has other functions of the same group, and names them.
    """
    names = list(dict.fromkeys(parse_address(address) for address in addresses))
    chosen: dict[str, Target] = {}
    for name in names:
        target = _read(name, root)
        chosen[name] = target
        siblings = [
            function
            for function in groups.read_group(target.group, root=root).functions
            if function.address not in names and not is_vfio(function.driver)
        ]
        in_use = [function for function in siblings if function.driver]
        if in_use and not with_group:
            others = ", ".join(f"{function.address} ({function.driver})" for function in in_use)
            raise DeviceError(
                f"{name} shares group {target.group} with {others}: VFIO accepts a group only as a whole",
                hint="name these functions too, or use --group to bind the whole group",
            )
        if with_group:
            chosen |= {function.address: _read(function.address, root) for function in siblings}
    return list(chosen.values())


def _read(address: str, root: str) -> Target:
    if not exists(address, root=root):
        raise DeviceError(f"{address}: this host has no such PCI function", hint="`hawse devices` lists them")
    if group_members.is_bridge(address, root=root):
        raise DeviceError(
            f"{address} is a bridge, which VFIO does not accept",
            hint="name a function behind it: `hawse devices` lists them",
        )
    group = sysfs.iommu_group(address, root=root)
    if group is None:
        raise DeviceError(
            f"{address} is not in an IOMMU group: without an IOMMU a device cannot be passed",
            hint="enable it: VT-d or AMD-Vi in the firmware setup, and intel_iommu=on on the kernel's command line",
        )
    driver = sysfs.driver(address, root=root)
    if driver and not records.is_driver(driver):
        raise DeviceError(f"{address}: the name of its driver is invalid: {driver[:80]!r}")
    return Target(address, group, driver, read_override(address, root=root))
