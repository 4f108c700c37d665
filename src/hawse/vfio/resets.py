"""Whether the functions of a group can be reset between two containers, as far as sysfs shows it.

VFIO resets a function when it is opened and when it is closed. Where the function has no reset, VFIO resets its whole
bus, if a bridge is above the bus and all functions on it are on VFIO drivers (Linux drivers/vfio/pci/vfio_pci_core.c,
vfio_pci_core_disable(), vfio_pci_dev_set_resettable()).
"""

from __future__ import annotations

import os

from hawse.errors import DeviceError
from hawse.vfio import sysfs
from hawse.vfio.address import ADDRESS
from hawse.vfio.groups import Function, HostGroup

#: Methods that reset all functions of the bus (Linux drivers/pci/pci.c, pci_reset_fn_methods).
_BUS = {"bus", "cxl_bus"}


def check(group: HostGroup, *, accepted: bool, root: str = "") -> None:
    """Raise :class:`DeviceError` for a group with a function that cannot be reset.

    ``accepted``: an administrator accepts such functions.
    """
    stuck = [] if accepted else _unresettable(group, root)
    if stuck:
        raise DeviceError(
            f"group {group.number} cannot be passed: nothing can reset {', '.join(stuck)}: the next container may find "
            "data that the previous one left in it",
            hint="look at reset_method of the function in sysfs; or, if all users of the device trust each other, "
            "set devices.unresettable = true",
        )


def warning(group: HostGroup, *, root: str = "") -> str:
    """A warning about functions that cannot be reset individually; "" if all can be.

    A bus reset also resets functions of the same bus in other groups. So the kernel carries it out only if the same
    user has all of them open (Linux drivers/vfio/pci/vfio_pci_core.c, vfio_pci_dev_set_hot_reset()).
    """
    if stuck := _unresettable(group, root):
        how = f"nothing can reset {', '.join(stuck)}"
    elif weak := [function.address for function in _weak(group)]:
        how = f"only a reset of the whole bus resets {', '.join(weak)}"
    else:
        return ""
    return f"group {group.number}: {how}: the next container may find data that the previous one left in it"


def _weak(group: HostGroup) -> list[Function]:
    return [f for f in group.functions if f.resets is not None and not set(f.resets) - _BUS]


def _unresettable(group: HostGroup, root: str) -> list[str]:
    ours = {function.address for function in group.functions}
    return [function.address for function in _weak(group) if not _reset_by_bus(function, ours, root)]


def _reset_by_bus(function: Function, ours: set[str], root: str) -> bool:
    """Whether a reset of the function's bus is possible and affects only functions of its group.

    If the function is the only one on its bus, its reset methods show whether the bus can be reset. With several
    functions on the bus they do not: the kernel determines the methods when it adds a function. So the first function
    of the bus has the method "bus", which fails later, and the others do not have it (drivers/pci/probe.c,
    pci_device_add(); drivers/pci/pci.c, pci_parent_bus_reset()).
    """
    bus = function.address.rpartition(":")[0]
    devices = f"{root}/sys/bus/pci/devices"
    others = {name for name in sysfs.entries(devices) if name.rpartition(":")[0] == bus} - {function.address}
    if not others:
        return bool(_BUS & set(function.resets or ()))
    above = os.path.basename(os.path.dirname(os.path.realpath(f"{devices}/{function.address}")))
    return others <= ours and ADDRESS.fullmatch(above) is not None
