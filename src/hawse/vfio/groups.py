"""IOMMU groups of the host: their endpoints, and whether a virtual machine can have them.

A group is the unit of ownership: each of its devices must be on a VFIO driver or on none, bridges excepted (Linux
Documentation/driver-api/vfio.rst). QEMU finds out late and says little, so everything is looked at here first.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from hawse.errors import DeviceError
from hawse.vfio import sysfs

_BRIDGE = 0x06
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
class HostGroup:
    """A group by its number, with its endpoints in the order of their addresses; bridges are left out."""

    number: int
    functions: tuple[Function, ...]


def read_group(number: int, *, root: str = "") -> HostGroup:
    """The group. Raises :class:`DeviceError` when the host has none of that number, or none with an endpoint."""
    members = sysfs.group_members(number, root=root)
    if not members:
        raise DeviceError(f"IOMMU group {number} does not exist on this host", hint="see /sys/kernel/iommu_groups")
    functions = tuple(_read_function(address, root) for address in members if not _is_bridge(address, root))
    if not functions:
        raise DeviceError(
            f"IOMMU group {number} has no device but bridges",
            hint="a bridge is not passed: pass the group of a device behind it",
        )
    return HostGroup(number, functions)


def read_function(address: str, *, root: str = "") -> list[Function]:
    """The function, none for a bridge. Raises :class:`DeviceError`."""
    return [] if _is_bridge(address, root) else [_read_function(address, root)]


def check_viable(group: HostGroup) -> None:
    """Raise :class:`DeviceError` naming every function that is not on a VFIO driver, and its driver."""
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


def check_token(group: HostGroup, token: str) -> None:
    """Raise :class:`DeviceError` where a virtual function needs the token of its physical function and there is none.

    The kernel answers EACCES without one and EINVAL to one that is not needed (Linux drivers/vfio/pci/
    vfio_pci_core.c, vfio_pci_validate_vf_token()); a PF that was never opened by a user of VFIO asks for none.
    """
    for function in group.functions:
        if function.physical_driver == "vfio-pci" and not token:
            raise DeviceError(
                f"{function.address} of group {group.number} is a virtual function of {function.physical}, which is "
                "on vfio-pci itself: it cannot be opened without that one's token",
                hint="give the UUID that the PF's program has set in the annotation hawse.vf-token",
            )


def reset_warning(group: HostGroup) -> str:
    """What to tell of a function that only a reset of its whole bus can reset; "" when there is nothing to tell.

    Functions of that bus in other groups would be reset too, so the kernel does it only where all of them are in the
    same hands (Linux drivers/vfio/pci/vfio_pci_core.c, vfio_pci_dev_set_hot_reset()).
    """
    weak = [f.address for f in group.functions if f.resets is not None and not set(f.resets) - {"bus", "cxl_bus"}]
    if not weak:
        return ""
    how = "nothing can reset" if any(f.resets == () for f in group.functions) else "a reset of the bus alone resets"
    return f"group {group.number}: {how} {', '.join(weak)}: what one container leaves in it the next may find"


def check_free(group: HostGroup, *, root: str = "") -> None:
    """Raise :class:`DeviceError` when the group's node cannot be opened now: a group opens once at a time, and not
    while a device file of it is in use (Linux drivers/vfio/group.c, vfio_group_fops_open()).

    A kernel without CONFIG_VFIO_GROUP has device files alone; who has one is found out when it is used.
    """
    path = f"{root}/dev/vfio/{group.number}"
    addresses = ", ".join(function.address for function in group.functions)
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        if error.errno == errno.EBUSY:
            users = holders(group.number)
            who = ", ".join(f"{name} (pid {pid})" for pid, name in users) or "another process"
            raise DeviceError(
                f"group {group.number} ({addresses}) is open elsewhere: {who} has {path}",
                hint="end it, or pass another group: a VFIO group can be opened once at a time",
            ) from None
        if error.errno == errno.ENOENT and all(sysfs.device_file(f.address, root=root) for f in group.functions):
            return
        hint = "the node is there when a device of the group is bound to vfio-pci"
        if error.errno in (errno.EACCES, errno.EPERM):
            # Who runs it as root has a device cgroup that forbids it, that of a container which the engine is in, say.
            hint = "run hawse as root, where the device cgroup of its engine allows the node"
        raise DeviceError(
            f"group {group.number} ({addresses}): {path}: {os.strerror(error.errno or 0)}", hint=hint
        ) from None


def holders(number: int) -> list[tuple[int, str]]:
    """Pid and name of each process that has the group's node or a device file of it open, as far as /proc shows it."""
    files = [sysfs.device_file(address) for address in sysfs.group_members(number)]
    paths = {f"/dev/vfio/{number}", *(f"/dev/vfio/devices/vfio{file[0]}" for file in files if file)}
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if any(os.readlink(f"/proc/{pid}/fd/{fd}") in paths for fd in os.listdir(f"/proc/{pid}/fd")):
                with open(f"/proc/{pid}/comm") as file:
                    found.append((int(pid), file.read().strip()))
        except OSError:
            continue  # it has ended
    return found


def _is_bridge(address: str, root: str) -> bool:
    return _number(address, "class", root) >> 16 == _BRIDGE


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
    """``reset_method`` (Linux Documentation/ABI/testing/sysfs-bus-pci), since 5.15."""
    try:
        with open(f"{root}/sys/bus/pci/devices/{address}/reset_method") as file:
            return tuple(file.read(256).split())
    except OSError:
        return None


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
