"""List the IOMMU groups of the host, and for each group whether it can be passed and, if not, why."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hawse.errors import DeviceError
from hawse.vfio import group_members, groups, obstacles, sysfs
from hawse.vfio.driver_names import is_vfio
from hawse.vfio.groups import Function, HostGroup
from hawse.vfio.obstacles import NOTHING, Accepted


@dataclass(frozen=True)
class Entry:
    """A function of a group.

    ``numa`` is the number of its NUMA node, -1 for none. ``virtual`` is the number of virtual functions that it has and
    the number that it supports, None if it does not support SR-IOV.
    """

    function: Function
    numa: int
    virtual: tuple[int, int] | None


@dataclass(frozen=True)
class Listing:
    """A group and its endpoints. ``number`` is None for the endpoints that are not in a group.

    ``node``: /dev/vfio/<number> exists. ``users`` are pid and name of each process that has the group open. ``refusal``
    is the reason why the group cannot be passed, "" if it can be, and ``remedy`` what the user can do about it.
    """

    number: int | None
    node: bool
    entries: tuple[Entry, ...]
    users: tuple[tuple[int, str], ...]
    refusal: str
    remedy: str


Holders = Callable[[int], list[tuple[int, str]]]


def read(*, root: str = "", holders: Holders = groups.holders, accepted: Accepted = NOTHING) -> list[Listing]:
    """All groups with an endpoint in the order of their numbers, then the endpoints without a group.

    A group is skipped if one of its functions vanishes while it is read, or has invalid attributes in sysfs; so is such
    a function without a group. A group of mediated devices is listed without entries, with the reason why it cannot be
    passed.
    """
    listings = []
    numbers = sorted(int(name) for name in _list(f"{root}/sys/kernel/iommu_groups") if name.isdigit())
    for number in numbers:
        node = os.path.exists(f"{root}/dev/vfio/{number}")
        try:
            group = groups.read_group(number, root=root)
        except DeviceError as error:
            if group_members.mediated(sysfs.group_members(number, root=root)):
                listings.append(Listing(number, node, (), tuple(holders(number)), error.message, error.hint))
            continue  # the group contains only bridges, or has just vanished
        users = tuple(holders(number))
        refusal, remedy = verdict(group, users, accepted=accepted, root=root)
        listings.append(Listing(number, node, _entries(group, root), users, refusal, remedy))
    ungrouped = HostGroup(-1, tuple(_without_group(root)))
    if ungrouped.functions:
        with_iommu = [number for number in numbers if not sysfs.lacks_iommu(number, root=root)]
        why = "not in an IOMMU group" if with_iommu else "no IOMMU is enabled on this host"
        hint = "enable the IOMMU: VT-d or AMD-Vi in the firmware, intel_iommu=on on the kernel's command line"
        listings.append(Listing(None, False, _entries(ungrouped, root), (), why, hint))
    return listings


def verdict(
    group: HostGroup, users: tuple[tuple[int, str], ...], *, accepted: Accepted = NOTHING, root: str = ""
) -> tuple[str, str]:
    """Why a group cannot be passed now, and a remedy; ("", "") if it can be passed."""
    try:
        obstacles.check(group, accepted=accepted, root=root)
    except DeviceError as error:
        return error.message, error.hint
    for function in group.functions:
        virtual = _virtual(function.address, root)
        if virtual and virtual[0] and not is_vfio(function.driver):
            count = "1 virtual function" if virtual[0] == 1 else f"{virtual[0]} virtual functions"
            return (
                f"{function.address} has {count}: VFIO does not accept a function with SR-IOV enabled",
                "pass virtual functions instead, or remove them: "
                f"`echo 0 > /sys/bus/pci/devices/{function.address}/sriov_numvfs`",
            )
    try:
        groups.check_viable(group)
    except DeviceError as error:
        return error.message, error.hint
    if users:
        who = ", ".join(f"{name} (pid {pid})" for pid, name in users)
        return f"it is in use: {who}", "only one process can use a group at a time"
    try:
        groups.check_node(group, root=root)
    except DeviceError as error:
        return error.message, error.hint
    return "", ""


def sandboxes(states: Mapping[str, int], *, root: str = "") -> Callable[[int], str]:
    """A function that returns the sandbox to which a pid of QEMU belongs, "" for none: QEMU's parent is the monitor.

    ``states`` are the pids of the monitors by the names of their sandboxes. Use the result only for messages: a pid may
    belong to another process by the time that it is used.
    """
    monitors = {pid: name for name, pid in states.items() if pid}

    def of(pid: int) -> str:
        try:
            with open(f"{root}/proc/{pid}/stat", "rb") as file:
                return monitors.get(int(file.read(4096).rpartition(b")")[2].split()[1]), "")
        except (OSError, ValueError, IndexError):
            return ""

    return of


def _entries(group: HostGroup, root: str) -> tuple[Entry, ...]:
    return tuple(
        Entry(f, _number(f.address, "numa_node", root, -1), _virtual(f.address, root)) for f in group.functions
    )


def _virtual(address: str, root: str) -> tuple[int, int] | None:
    total = _number(address, "sriov_totalvfs", root, 0)
    return (_number(address, "sriov_numvfs", root, 0), total) if total else None


def _without_group(root: str) -> list[Function]:
    functions = []
    for address in sorted(_list(f"{root}/sys/bus/pci/devices")):
        if sysfs.iommu_group(address, root=root) is None:
            try:
                functions += groups.read_function(address, root=root)
            except DeviceError:
                continue
    return functions


def _number(address: str, attribute: str, root: str, default: int) -> int:
    try:
        return sysfs.read_number(address, attribute, root=root)
    except (OSError, ValueError):
        return default


def _list(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []
