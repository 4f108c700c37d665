"""Every IOMMU group of the host, with what a user wants to know before he passes one: can it be, and if not, why."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hawse.errors import DeviceError
from hawse.vfio import groups, members, obstacles, sysfs
from hawse.vfio.groups import Function, HostGroup
from hawse.vfio.obstacles import NOTHING, Accepted


@dataclass(frozen=True)
class Entry:
    """A function. ``numa`` is its node's number, -1 for none; ``virtual`` how many virtual functions it has, of how
    many it can have, None where it can have none."""

    function: Function
    numa: int
    virtual: tuple[int, int] | None


@dataclass(frozen=True)
class Listing:
    """A group and its endpoints, None for those that are in none. ``users`` are pid and name of who has it open.

    ``refusal`` tells why it cannot be passed, "" where it can, and ``remedy`` what to do.
    """

    number: int | None
    node: bool
    entries: tuple[Entry, ...]
    users: tuple[tuple[int, str], ...]
    refusal: str
    remedy: str


Holders = Callable[[int], list[tuple[int, str]]]


def read(*, root: str = "", holders: Holders = groups.holders, accepted: Accepted = NOTHING) -> list[Listing]:
    """All groups with an endpoint in the order of their numbers, then the endpoints without one.

    A function that goes while it is read, or that sysfs tells nonsense of, is left out. A group of mediated devices
    has no entry, and tells why it cannot be passed.
    """
    listings = []
    numbers = sorted(int(name) for name in _list(f"{root}/sys/kernel/iommu_groups") if name.isdigit())
    for number in numbers:
        node = os.path.exists(f"{root}/dev/vfio/{number}")
        try:
            group = groups.read_group(number, root=root)
        except DeviceError as error:
            if members.mediated(sysfs.group_members(number, root=root)):
                listings.append(Listing(number, node, (), tuple(holders(number)), error.message, error.hint))
            continue  # bridges alone, or just gone
        users = tuple(holders(number))
        refusal, remedy = verdict(group, users, accepted=accepted, root=root)
        listings.append(Listing(number, node, _entries(group, root), users, refusal, remedy))
    alone = HostGroup(-1, tuple(_without_group(root)))
    if alone.functions:
        on = [number for number in numbers if not sysfs.lacks_iommu(number, root=root)]
        why = "in no IOMMU group" if on else "this host has no IOMMU that is on"
        hint = "turn it on: VT-d or AMD-Vi in the firmware, intel_iommu=on on the kernel's command line"
        listings.append(Listing(None, False, _entries(alone, root), (), why, hint))
    return listings


def verdict(
    group: HostGroup, users: tuple[tuple[int, str], ...], *, accepted: Accepted = NOTHING, root: str = ""
) -> tuple[str, str]:
    """Why a group cannot be passed now and what to do; ("", "") where it can."""
    try:
        obstacles.check(group, accepted=accepted, root=root)
    except DeviceError as error:
        return error.message, error.hint
    for function in group.functions:
        virtual = _virtual(function.address, root)
        if virtual and virtual[0] and "vfio" not in function.driver:
            return (
                f"{function.address} has {virtual[0]} virtual functions: pass those",
                f"or remove them: echo 0 > /sys/bus/pci/devices/{function.address}/sriov_numvfs",
            )
    try:
        groups.check_viable(group)
    except DeviceError as error:
        return error.message, error.hint
    if users:
        who = ", ".join(f"{name} (pid {pid})" for pid, name in users)
        return f"it is open: {who}", "a group is one user's at a time"
    try:
        groups.check_node(group, root=root)
    except DeviceError as error:
        return error.message, error.hint
    return "", ""


def sandboxes(states: Mapping[str, int], *, root: str = "") -> Callable[[int], str]:
    """Which sandbox a pid is QEMU of: its parent is a monitor. ``states`` has each sandbox's monitor's pid.

    By pids, which may be other processes' since: what is found is printed and nothing is done by it.
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
    found = []
    for address in sorted(_list(f"{root}/sys/bus/pci/devices")):
        if sysfs.iommu_group(address, root=root) is None:
            try:
                found += groups.read_function(address, root=root)
            except DeviceError:
                continue
    return found


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
