"""Classify the members of an IOMMU group: functions (passed), bridges (not passed), and others (refused)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hawse.errors import DeviceError
from hawse.vfio import sysfs
from hawse.vfio.address import ADDRESS

#: Base class and subclass of host bridges and of both kinds of PCI-to-PCI bridges (PCI Code and ID Assignment
#: Specification, section 1.7). Others of the base class are endpoints: an NVSwitch is 0680, an LPC controller 0601.
_BASE_CLASS, _CLASSES = 0x06, {0x0600, 0x0604, 0x0609}
_HEADER_TYPE, _LAYOUT, _BRIDGES = 0x0E, 0x7F, {1, 2}  # PCI Local Bus 3.0, section 6.2.1; 2: CardBus
#: The name of a mediated device is its UUID (Linux Documentation/driver-api/vfio-mediated-device.rst).
_MEDIATED = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}")


def is_bridge(address: str, *, root: str = "") -> bool:
    """Whether a function is a bridge. Raises :class:`DeviceError`.

    vfio-pci accepts only functions with the header type of an endpoint (Linux drivers/vfio/pci/vfio_pci_core.c,
    vfio_pci_core_register_device()). A host bridge has that type, too, but is not passed: the guest has its own.
    """
    try:
        number = sysfs.read_number(address, "class", root=root) >> 8
    except (OSError, ValueError) as error:
        raise DeviceError(
            f"{address}: its class cannot be read from sysfs: {sysfs.explain(error)}",
            hint=f"look at /sys/bus/pci/devices/{address}/class; a device can vanish after a failed reset",
        ) from None
    # Read the header only if the class is not enough: reading it wakes a function from D3cold (drivers/pci/pci-sysfs.c,
    # pci_read_config()).
    return number in _CLASSES or (number >> 8 == _BASE_CLASS and _layout(address, root) in _BRIDGES)


def mediated(names: Sequence[str]) -> list[str]:
    """The names of mediated devices, which a driver creates from a PCI function."""
    return [name for name in names if _MEDIATED.fullmatch(name)]


def check_names(names: Sequence[str], *, where: str) -> None:
    """Raise :class:`DeviceError` for members that are not PCI functions; ``where`` names their group or node."""
    if mdevs := mediated(names):
        raise DeviceError(
            f"{where}: {', '.join(mdevs)}: mediated devices cannot be passed: they have neither a PCI address nor BARs",
            hint="pass its parent PCI function, or a virtual function of that",
        )
    others = [name for name in names if not ADDRESS.fullmatch(name)]
    if others:
        raise DeviceError(
            f"{where}: {', '.join(others)}: only PCI functions can be passed",
            hint="pass a group that contains only PCI functions: `hawse devices` lists them",
        )


def _layout(address: str, root: str) -> int:
    """The layout in the header type, 0 if it cannot be read; 0x7f (all ones) for a function that has vanished."""
    try:
        with open(f"{root}/sys/bus/pci/devices/{address}/config", "rb") as file:
            header = file.read(_HEADER_TYPE + 1)
    except OSError:
        return 0
    return header[_HEADER_TYPE] & _LAYOUT if len(header) > _HEADER_TYPE else 0
