"""IOMMU groups of the host: their endpoints, and whether a virtual machine can have them.

A group is the unit of ownership: each of its devices must be on a VFIO driver or on none, bridges excepted, which may
be on the kernel's driver of ports (Linux Documentation/driver-api/vfio.rst). QEMU finds out late and says little, so
everything is looked at here first.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass

from hawse.errors import DeviceError
from hawse.vfio import members, sysfs

#: Drivers that leave a group's DMA to its user, beside VFIO's own (Linux drivers/pci/pcie/portdrv.c and pci-stub.c).
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
    """A PCI function. ``driver`` is "" when none has it.

    ``resets`` are the ways in which the kernel can reset it, best first, None where it does not tell. ``physical`` is
    the function that an SR-IOV virtual function is of, "" for others, and ``physical_driver`` that one's driver.
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
    """A member of a group that is not passed. ``driver`` is "" when none has it."""

    address: str
    driver: str


@dataclass(frozen=True)
class HostGroup:
    """A group by its number, with its endpoints in the order of their addresses, and the bridges beside them."""

    number: int
    functions: tuple[Function, ...]
    bridges: tuple[Bridge, ...] = ()


def read_group(number: int, *, root: str = "") -> HostGroup:
    """The group. Raises :class:`DeviceError` when the host has none of that number, or none with an endpoint, or one
    with members that are no PCI functions."""
    names = sysfs.group_members(number, root=root)
    if not names:
        raise DeviceError(f"IOMMU group {number} does not exist on this host", hint="see /sys/kernel/iommu_groups")
    members.check_names(names, where=f"IOMMU group {number}")
    bridges = [name for name in names if members.is_bridge(name, root=root)]
    functions = tuple(_read_function(name, root) for name in names if name not in bridges)
    if not functions:
        raise DeviceError(
            f"IOMMU group {number} has no device but bridges",
            hint="a bridge is not passed: pass the group of a device behind it",
        )
    return HostGroup(number, functions, tuple(Bridge(name, sysfs.driver(name, root=root)) for name in bridges))


def read_function(address: str, *, root: str = "") -> list[Function]:
    """The function, none for a bridge. Raises :class:`DeviceError`."""
    return [] if members.is_bridge(address, root=root) else [_read_function(address, root)]


def check_bridges(group: HostGroup) -> None:
    """Raise :class:`DeviceError` naming every bridge whose driver keeps the group from VFIO, and the driver.

    A driver that is bound claims its group's DMA for the kernel unless it has declared driver_managed_dma (Linux
    drivers/pci/pci-driver.c, pci_dma_configure()), and who opens the group then gets EPERM (drivers/iommu/iommu.c,
    iommu_group_claim_dma_owner()). shpchp has not, for one. Before 5.19 any driver of a bridge was let pass, but for
    a host bridge's (drivers/vfio/vfio.c, vfio_dev_driver_allowed()); a distribution's version does not tell which.
    """
    others = [bridge for bridge in group.bridges if bridge.driver not in _HARMLESS and "vfio" not in bridge.driver]
    if others:
        names = ", ".join(f"the bridge {bridge.address} is bound to {bridge.driver}" for bridge in others)
        remedies = (f"`echo {bridge.address} > /sys/bus/pci/drivers/{bridge.driver}/unbind`" for bridge in others)
        raise DeviceError(
            f"group {group.number} is not viable: {names}, which keeps the whole group for the kernel",
            hint=f"unbind it: {', '.join(remedies)}",
        )


def check_viable(group: HostGroup) -> None:
    """Raise :class:`DeviceError` naming every function that is not on a VFIO driver, and its driver, or every bridge
    that is in the way."""
    check_bridges(group)
    others = [function for function in group.functions if "vfio" not in function.driver]
    if not others:
        return
    names = ", ".join(
        f"{function.address} is bound to {function.driver}" if function.driver else f"{function.address} has no driver"
        for function in others
    )
    addresses = " ".join(function.address for function in others)
    remedy = f"`hawse bind {addresses}`, or devices.managed = true, which does it for the life of a container"
    if len(group.functions) == 1:
        raise DeviceError(f"group {group.number} cannot be passed: {names}, not to vfio-pci", hint=remedy)
    raise DeviceError(
        f"group {group.number} is not viable: {names}, not to vfio-pci; "
        f"all of its {len(group.functions)} devices must be on vfio-pci",
        hint=remedy,
    )


def check_node(group: HostGroup, *, root: str = "") -> None:
    """Raise :class:`DeviceError` when the group's node is not there; nothing is opened.

    A kernel without CONFIG_VFIO_GROUP has device files alone.
    """
    try:
        os.stat(f"{root}/dev/vfio/{group.number}")
    except OSError as error:
        if error.errno == errno.ENOENT and all(sysfs.device_file(f.address, root=root) for f in group.functions):
            return
        raise _not_opened(group, error, root) from None


def check_free(group: HostGroup, *, root: str = "", open_node: Callable[[str, int], int] = os.open) -> None:
    """Raise :class:`DeviceError` when the group's node cannot be opened now: a group opens once at a time, and not
    while a device file of it is in use (Linux drivers/vfio/group.c, vfio_group_fops_open()).

    Where there are device files alone, who has one is found out when it is used. ``open_node`` is open(2).
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
                f"group {group.number} ({_addresses(group)}) is open elsewhere: {who} has {path}",
                hint="end it, or pass another group: a VFIO group can be opened once at a time",
            ) from None
        raise _not_opened(group, error, root) from None


def holders(number: int, *, root: str = "") -> list[tuple[int, str]]:
    """Pid and name of each process that has the group's node or a device file of it open, as far as /proc shows it.

    By pids, which may be other processes' since: what is found is printed and nothing is done by it.
    """
    files = [sysfs.device_file(address, root=root) for address in sysfs.group_members(number, root=root)]
    paths = {f"{root}/dev/vfio/{number}", *(f"{root}/dev/vfio/devices/vfio{file[0]}" for file in files if file)}
    found = []
    processes = f"{root}/proc"
    for pid in filter(str.isdigit, os.listdir(processes) if os.path.isdir(processes) else ()):
        try:
            if any(os.readlink(f"{processes}/{pid}/fd/{fd}") in paths for fd in os.listdir(f"{processes}/{pid}/fd")):
                with open(f"{processes}/{pid}/comm") as file:
                    found.append((int(pid), file.read().strip()))
        except OSError:
            continue  # it has ended
    return found


def _addresses(group: HostGroup) -> str:
    return ", ".join(function.address for function in group.functions)


def _not_opened(group: HostGroup, error: OSError, root: str) -> DeviceError:
    hint = "the node is there when a device of the group is bound to vfio-pci"
    if error.errno in (errno.EACCES, errno.EPERM):
        # Who runs it as root has a device cgroup that forbids it, that of a container which the engine is in, say.
        hint = "run hawse as root, where the device cgroup of its engine allows the node"
    path = f"{root}/dev/vfio/{group.number}"
    return DeviceError(
        f"group {group.number} ({_addresses(group)}): {path}: {os.strerror(error.errno or 0)}", hint=hint
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
    """``reset_method``, since Linux 5.15; None where only ``reset`` says that there is one (Linux
    Documentation/ABI/testing/sysfs-bus-pci). A function that has none has neither file (drivers/pci/pci.c,
    pci_dev_reset_method_attr_is_visible(); drivers/pci/pci-sysfs.c, pci_dev_reset_attr_is_visible())."""
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
    """The first six lines of ``resource``: start, end and flags of each BAR, in hexadecimal."""
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
            f"{address}: its BARs cannot be read from sysfs: {error}",
            hint=f"look at /sys/bus/pci/devices/{address}/resource; a device that was reset badly may be gone",
        ) from None
    return bars


def _number(address: str, attribute: str, root: str) -> int:
    try:
        return sysfs.read_number(address, attribute, root=root)
    except (OSError, ValueError) as error:
        raise DeviceError(f"{address}: its {attribute} cannot be read from sysfs: {error}") from None
