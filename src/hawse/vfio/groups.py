"""IOMMU groups of the host: their endpoints, and whether they can be passed to a VM.

A group is the unit of ownership: each of its devices must be bound to a VFIO driver or unbound. Only bridges may also
be bound to the kernel's port driver (Linux Documentation/driver-api/vfio.rst). QEMU detects violations late and its
errors do not explain them, so everything is checked here first.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass

from hawse.errors import DeviceError
from hawse.vfio import group_members, sysfs
from hawse.vfio.driver_names import is_vfio

#: Drivers other than VFIO's that leave a group's DMA to its user (Linux drivers/pci/pcie/portdrv.c and pci-stub.c).
_HARMLESS = ("", "pcieport", "pci-stub")
_IO, _PREFETCH, _MEM_64 = 0x100, 0x2000, 0x100000  # include/linux/ioport.h


@dataclass(frozen=True)
class Bar:
    """A base address register; ``size`` in bytes."""

    index: int
    size: int
    is_io: bool
    is_64bit: bool
    is_prefetchable: bool


@dataclass(frozen=True)
class Function:
    """A PCI function. ``driver`` is "" if it has none.

    ``resets`` are the methods by which the kernel can reset it, best first; None if the kernel does not list them.
    For an SR-IOV virtual function, ``physical`` is its physical function and ``physical_driver`` the driver of that;
    both are "" for other functions.
    """

    address: str
    vendor: int
    device: int
    class_code: int
    driver: str
    bars: tuple[Bar, ...]
    resets: tuple[str, ...] | None = None
    physical: str = ""
    physical_driver: str = ""


@dataclass(frozen=True)
class Bridge:
    """A bridge in a group, which is not passed. ``driver`` is "" if it has none."""

    address: str
    driver: str


@dataclass(frozen=True)
class HostGroup:
    """A group's number, its endpoints in the order of their addresses, and its bridges."""

    number: int
    functions: tuple[Function, ...]
    bridges: tuple[Bridge, ...] = ()


def read_group(number: int, *, root: str = "") -> HostGroup:
    """The group with this number.

    Raises :class:`DeviceError` if the host has no such group, if the group has no endpoint, or if it has members that
    are not PCI functions.
    """
    names = sysfs.group_members(number, root=root)
    if not names:
        raise DeviceError(f"IOMMU group {number} does not exist on this host", hint="see /sys/kernel/iommu_groups")
    group_members.check_names(names, where=f"IOMMU group {number}")
    bridges = [name for name in names if group_members.is_bridge(name, root=root)]
    functions = tuple(_read_function(name, root) for name in names if name not in bridges)
    if not functions:
        raise DeviceError(
            f"IOMMU group {number} contains only bridges",
            hint="bridges cannot be passed: pass the group of a device behind the bridge",
        )
    return HostGroup(number, functions, tuple(Bridge(name, sysfs.driver(name, root=root)) for name in bridges))


def read_function(address: str, *, root: str = "") -> list[Function]:
    """The function in a list, which is empty for a bridge. Raises :class:`DeviceError`."""
    return [] if group_members.is_bridge(address, root=root) else [_read_function(address, root)]


def check_bridges(group: HostGroup) -> None:
    """Raise :class:`DeviceError` naming every bridge whose driver prevents VFIO from using the group, and the driver.

    A bound driver claims its group's DMA for the kernel unless it declares driver_managed_dma (Linux
    drivers/pci/pci-driver.c, pci_dma_configure()), and opening the group then fails with EPERM (drivers/iommu/iommu.c,
    iommu_group_claim_dma_owner()). shpchp, for example, does not declare it. Linux before 5.19 accepted any driver of a
    bridge except a host bridge's (drivers/vfio/vfio.c, vfio_dev_driver_allowed()). The version of a distribution's
    kernel does not show which of the two rules it has.
    """
    others = [bridge for bridge in group.bridges if bridge.driver not in _HARMLESS and not is_vfio(bridge.driver)]
    if others:
        names = ", ".join(f"the bridge {bridge.address} is bound to {bridge.driver}" for bridge in others)
        remedies = (f"`echo {bridge.address} > /sys/bus/pci/drivers/{bridge.driver}/unbind`" for bridge in others)
        raise DeviceError(
            f"group {group.number} is not viable: {names}, which reserves the DMA of the whole group for the kernel",
            hint=f"unbind the bridge: {', '.join(remedies)}",
        )


def check_viable(group: HostGroup) -> None:
    """Raise :class:`DeviceError` naming every function that is not bound to a VFIO driver, and its present driver.

    Bridges are checked first (:func:`check_bridges`).
    """
    check_bridges(group)
    others = [function for function in group.functions if not is_vfio(function.driver)]
    if not others:
        return
    names = ", ".join(
        f"{function.address} is bound to {function.driver}" if function.driver else f"{function.address} has no driver"
        for function in others
    )
    addresses = " ".join(function.address for function in others)
    remedy = f"`hawse bind {addresses}`, or set devices.managed = true to bind devices for the lifetime of a container"
    if len(group.functions) == 1:
        raise DeviceError(f"group {group.number} cannot be passed: {names}; it must be bound to vfio-pci", hint=remedy)
    raise DeviceError(
        f"group {group.number} is not viable: {names}; "
        f"all of its {len(group.functions)} functions must be bound to vfio-pci",
        hint=remedy,
    )


def check_node(group: HostGroup, *, root: str = "") -> None:
    """Raise :class:`DeviceError` if the group's node does not exist. The node is not opened.

    A kernel without CONFIG_VFIO_GROUP has no group nodes, only device files. Then these have to exist.
    """
    try:
        os.stat(f"{root}/dev/vfio/{group.number}")
    except OSError as error:
        if error.errno == errno.ENOENT and all(sysfs.device_file(f.address, root=root) for f in group.functions):
            return
        raise _not_opened(group, error, root) from None


def check_free(group: HostGroup, *, root: str = "", open_node: Callable[[str, int], int] = os.open) -> None:
    """Raise :class:`DeviceError` if the group's node cannot be opened now.

    Only one process can open a group at a time, and none while a device file of the group is in use (Linux
    drivers/vfio/group.c, vfio_group_fops_open()). If the kernel has only device files, nothing is opened here: a
    conflict is detected when the device file is used. ``open_node`` is open(2).
    """
    check_node(group, root=root)
    path = f"{root}/dev/vfio/{group.number}"
    try:
        os.close(open_node(path, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno == errno.EBUSY:
            users = holders(group.number, root=root)
            who = ", ".join(f"{name} (pid {pid})" for pid, name in users) or "another process"
            raise DeviceError(
                f"group {group.number} ({_addresses(group)}) is in use: {who} has {path} open",
                hint="end that process, or pass another group: only one process can open a VFIO group at a time",
            ) from None
        raise _not_opened(group, error, root) from None


def holders(number: int, *, root: str = "") -> list[tuple[int, str]]:
    """Pid and name of each process that has the group's node or a device file of it open, as far as /proc shows it.

    Use the result only for messages: a pid may belong to another process by the time that it is used.
    """
    files = [sysfs.device_file(address, root=root) for address in sysfs.group_members(number, root=root)]
    paths = {f"{root}/dev/vfio/{number}", *(f"{root}/dev/vfio/devices/vfio{file[0]}" for file in files if file)}
    users = []
    processes = f"{root}/proc"
    for pid in filter(str.isdigit, os.listdir(processes) if os.path.isdir(processes) else ()):
        try:
            if any(os.readlink(f"{processes}/{pid}/fd/{fd}") in paths for fd in os.listdir(f"{processes}/{pid}/fd")):
                with open(f"{processes}/{pid}/comm") as file:
                    users.append((int(pid), file.read().strip()))
        except OSError:
            continue  # the process has ended
    return users


def _addresses(group: HostGroup) -> str:
    return ", ".join(function.address for function in group.functions)


def _not_opened(group: HostGroup, error: OSError, root: str) -> DeviceError:
    hint = "the node exists while a device of the group is bound to vfio-pci"
    if error.errno in (errno.EACCES, errno.EPERM):
        # For root, the device cgroup denies access, for example that of a container in which the engine runs.
        hint = "run hawse as root, in a device cgroup that allows the node"
    path = f"{root}/dev/vfio/{group.number}"
    return DeviceError(
        f"group {group.number} ({_addresses(group)}): {path} cannot be opened: {os.strerror(error.errno or 0)}",
        hint=hint,
    )


def _read_function(address: str, root: str) -> Function:
    return Function(
        address=address,
        vendor=_number(address, "vendor", root),
        device=_number(address, "device", root),
        class_code=_number(address, "class", root),
        driver=sysfs.driver(address, root=root),
        bars=tuple(_read_bars(address, root)),
        resets=_read_resets(address, root),
        physical=(physical := _link_name(f"{root}/sys/bus/pci/devices/{address}/physfn")),
        physical_driver=sysfs.driver(physical, root=root) if physical else "",
    )


def _read_resets(address: str, root: str) -> tuple[str, ...] | None:
    """The reset methods in ``reset_method``, which exists since Linux 5.15 (Documentation/ABI/testing/sysfs-bus-pci).

    None if only the file ``reset`` exists: then there is a method, but not its name. A function without a reset has
    neither file (drivers/pci/pci.c, pci_dev_reset_method_attr_is_visible(); drivers/pci/pci-sysfs.c,
    pci_dev_reset_attr_is_visible()).
    """
    try:
        with open(f"{root}/sys/bus/pci/devices/{address}/reset_method") as file:
            return tuple(file.read(256).split())
    except OSError:
        return None if os.path.exists(f"{root}/sys/bus/pci/devices/{address}/reset") else ()


def _link_name(path: str) -> str:
    try:
        return os.path.basename(os.readlink(path))
    except OSError:
        return ""


def _read_bars(address: str, root: str) -> list[Bar]:
    """The BARs in the first six lines of ``resource``: start, end and flags of each BAR, in hexadecimal."""
    bars = []
    try:
        with open(f"{root}/sys/bus/pci/devices/{address}/resource") as file:
            for index, line in enumerate(file.read(8192).splitlines()[:6]):
                start, end, flags = (int(field, 16) for field in line.split())
                if end > start:
                    bars.append(
                        Bar(index, end - start + 1, bool(flags & _IO), bool(flags & _MEM_64), bool(flags & _PREFETCH))
                    )
    except (OSError, ValueError) as error:
        raise DeviceError(
            f"{address}: its BARs cannot be read from sysfs: {sysfs.explain(error)}",
            hint=f"look at /sys/bus/pci/devices/{address}/resource; a device can vanish after a failed reset",
        ) from None
    return bars


def _number(address: str, attribute: str, root: str) -> int:
    try:
        return sysfs.read_number(address, attribute, root=root)
    except (OSError, ValueError) as error:
        raise DeviceError(f"{address}: its {attribute} cannot be read from sysfs: {sysfs.explain(error)}") from None
