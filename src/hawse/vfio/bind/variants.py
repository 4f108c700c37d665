"""Choose the VFIO driver of a function: vfio-pci, or the kernel's variant driver for this device.

A variant driver such as mlx5_vfio_pci declares its devices in modules.alias, in lines like
``alias vfio_pci:v000015B3d0000101Esv*sd*bc*sc*i* mlx5_vfio_pci`` (Linux Documentation/driver-api/vfio.rst, and
scripts/mod/file2alias.c, do_pci_entry()). It binds only through driver_override.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from typing import BinaryIO

from hawse.errors import DeviceError, HostError
from hawse.vfio import sysfs

GENERIC = "vfio-pci"
_PREFIX = b"alias vfio_pci:"
_MAX_LINE = 4096

#: Devices with errata that vfio-pci refuses (Linux drivers/vfio/pci/vfio_pci.c, vfio_pci_dev_in_denylist(), with the
#: numbers of include/linux/pci_ids.h): QAT DH895XCC, C3XXX and C62X with their VFs, DSA and IAX of Sapphire Rapids.
_INTEL = 0x8086
_DENIED = {0x0435, 0x0443, 0x19E2, 0x19E3, 0x37C8, 0x37C9, 0x0B25, 0x0CFE}


def choose(modalias: str, lines: Iterable[str]) -> str:
    """The module for a function with this modalias, from lines of modules.alias; the generic one if no line matches.

    The line with the fewest wildcards wins, as in libvirt: it is the most specific.
    """
    vfio_alias = "vfio_pci:" + modalias.removeprefix("pci:")
    best = (1 << 30, GENERIC)
    for line in lines:
        words = line.split()
        if len(words) == 3 and words[0] == "alias" and fnmatchcase(vfio_alias, words[1]):
            best = min(best, (sum(words[1].count(c) for c in "*?["), words[2]), key=lambda entry: entry[0])
    return best[1]


def module_for(address: str, *, root: str = "", release: str = "") -> str:
    """The module for a function of this host. ``release`` is a kernel release, "" for the running kernel's."""
    try:
        with open(f"{root}/sys/bus/pci/devices/{address}/modalias") as file:
            modalias = file.read(_MAX_LINE).strip()
        with open(f"{root}/lib/modules/{release or os.uname().release}/modules.alias", "rb") as aliases:
            return choose(modalias, _vfio_lines(aliases))
    except FileNotFoundError:
        return GENERIC  # a kernel without modules has no variant drivers to load
    except (OSError, ValueError) as error:
        reason = sysfs.explain(error)
        raise DeviceError(f"{address}: its VFIO driver cannot be looked up in modules.alias: {reason}") from None


def installed(name: str, *, root: str = "") -> str:
    """The exact name of a loaded PCI driver that equals ``name`` except for "-" and "_"; "" if none is loaded.

    The names differ between drivers: the module vfio_pci contains the driver vfio-pci, but the module mlx5_vfio_pci
    contains the driver mlx5_vfio_pci.
    """
    try:
        drivers = sorted(os.listdir(f"{root}/sys/bus/pci/drivers"))
    except OSError:
        return ""
    if name in drivers:
        return name
    return next((driver for driver in drivers if same(driver, name)), "")


def same(one: str, other: str) -> bool:
    """Whether two names are the same to modprobe."""
    return one.replace("-", "_") == other.replace("-", "_")


def provide(
    name: str,
    address: str,
    *,
    load: Callable[[str, float], str],
    seconds: float,
    root: str = "",
    modalias: bool = False,
) -> str:
    """Load the driver with this name if needed, and return its exact name.

    With ``modalias``, the modules that match the function's modalias are loaded if ``name`` is not enough. ``load``
    takes a module and a timeout in seconds, and returns the reason of a failure. Raises :class:`HostError` naming the
    function.
    """
    driver = installed(name, root=root)
    if driver:
        return driver
    reason = load(name, seconds)
    driver = installed(name, root=root)
    if not driver and modalias:
        try:
            with open(f"{root}/sys/bus/pci/devices/{address}/modalias") as file:
                load(file.read(_MAX_LINE).strip(), seconds)
        except (OSError, ValueError):
            pass
        driver = installed(name, root=root)
    if not driver:
        raise HostError(
            f"{address}: the kernel has no PCI driver {name}" + (f": {reason}" if reason else ""),
            hint=f"load it: `modprobe {name}`",
        )
    return driver


def check_denylist(address: str, *, root: str = "") -> None:
    """Raise :class:`DeviceError` if vfio-pci, the generic driver, refuses the function."""
    try:
        vendor, device = (sysfs.read_number(address, name, root=root) for name in ("vendor", "device"))
    except (OSError, ValueError) as error:
        reason = sysfs.explain(error)
        raise DeviceError(f"{address}: its vendor and device cannot be read from sysfs: {reason}") from None
    if vendor != _INTEL or device not in _DENIED or _denylist_is_off(root):
        return
    raise DeviceError(
        f"{address}: vfio-pci refuses a {vendor:04x}:{device:04x}: it is on its denylist for known errata",
        hint="if its users are trusted, reload vfio-pci with disable_denylist: "
        "`modprobe -r vfio-pci; modprobe vfio-pci disable_denylist=1`",
    )


def _denylist_is_off(root: str) -> bool:
    try:
        with open(f"{root}/sys/module/vfio_pci/parameters/disable_denylist") as file:
            return file.read(16).strip() == "Y"
    except OSError:
        return False


def _vfio_lines(file: BinaryIO) -> Iterator[str]:
    """The complete lines of modules.alias for VFIO. A line that is longer than any alias is skipped."""
    while line := file.readline(_MAX_LINE):
        whole = line.endswith(b"\n") or len(line) < _MAX_LINE
        if whole and line.startswith(_PREFIX):
            yield line.decode(errors="replace")
        while not whole:
            line = file.readline(_MAX_LINE)
            whole = line.endswith(b"\n") or len(line) < _MAX_LINE
