"""Whether this host uses a PCI function itself: its network interfaces, its disks, its virtual functions.

The kernel unbinds the driver of a mounted disk, or of the NIC that carries the user's connection, without any warning.
So these are checked first. Network interfaces in other network namespaces are not found.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import struct
from collections.abc import Callable, Iterable
from typing import TypeVar

from hawse.errors import DeviceError
from hawse.vfio import groups, sysfs

_RTF_LOCAL, _RTF_ANYCAST = 0x80000000, 0x00100000  # include/uapi/linux/ipv6_route.h
#: A path to a namespace that NVMe multipath hides (Linux drivers/nvme/host/multipath.c): subsystem, controller, head.
#: The disk that is mounted is the head's, nvme<subsystem>n<head>, and not below the PCI function.
_NVME_PATH = re.compile(r"nvme(\d+)c\d+n(\d+)")

_Result = TypeVar("_Result")


def check(address: str, *, root: str = "", claimed: Callable[[str], bool] | None = None) -> None:
    """Raise :class:`DeviceError` naming the host's use of the function, if there is one.

    ``claimed`` returns whether the block device of a node is claimed exclusively (:func:`is_claimed`).
    """
    _check_virtual_functions(address, root)
    _check_network(address, root)
    _check_disks(address, root, claimed or is_claimed)


def holders(group: int, *, root: str = "", open_node: Callable[[str, int], int] = os.open) -> list[str]:
    """The processes that hold a group open, as "name (pid 5)", or "another process" for one that /proc does not show.

    ``open_node`` is open(2).
    """
    processes = [f"{name} (pid {pid})" for pid, name in groups.holders(group, root=root)]
    if processes:
        return processes
    try:
        # /proc shows another path of the node for a process with its own mount namespace. But a group can be opened
        # only once, so try to open it.
        os.close(open_node(f"{root}/dev/vfio/{group}", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return ["another process"] if error.errno == errno.EBUSY else []
    return []


def is_claimed(node: str, *, open_node: Callable[[str, int], int] = os.open) -> bool:
    """Whether a block device is claimed exclusively (O_EXCL, open(2)), as by a mount in another namespace or by ZFS.

    ``open_node`` is open(2).
    """
    try:
        os.close(open_node(node, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False


def ipv4_route(lines: Iterable[str], interfaces: set[str]) -> str:
    """The first route in /proc/net/route (proc_net(5)) over one of the interfaces, as a sentence; "" for none."""
    for line in lines:
        fields = line.split()
        if len(fields) < 8 or fields[0] not in interfaces:
            continue
        try:
            # The address in network byte order, printed as a number of the host's byte order.
            target = socket.inet_ntoa(struct.pack("=I", int(fields[1], 16)))
            length = int(fields[7], 16).bit_count()
        except (ValueError, struct.error):
            return f"{fields[0]} carries a route"
        return f"{fields[0]} carries the " + (f"route to {target}/{length}" if length else "default route")
    return ""


def ipv6_route(lines: Iterable[str], interfaces: set[str]) -> str:
    """The same for /proc/net/ipv6_route, without the routes that every interface has: link-local and multicast."""
    for line in lines:
        fields = line.split()
        if len(fields) < 10 or fields[9] not in interfaces or fields[9] == "lo":
            continue
        try:
            target, length, flags = bytes.fromhex(fields[0]), int(fields[1], 16), int(fields[8], 16)
            name = socket.inet_ntop(socket.AF_INET6, target)
        except (ValueError, OSError):
            return f"{fields[9]} carries a route"
        link_local = target[0] == 0xFE and target[1] & 0xC0 == 0x80
        if link_local or target[0] == 0xFF or flags & (_RTF_LOCAL | _RTF_ANYCAST):
            continue
        return f"{fields[9]} carries the " + (f"route to {name}/{length}" if length else "default route of IPv6")
    return ""


def mounted_at(lines: Iterable[str], numbers: str, name: str) -> str:
    """The mount point of a block device in /proc/self/mountinfo (proc_pid_mountinfo(5)); "" if it is not mounted.

    The device is found by its ``numbers``, such as "8:1", or as the source /dev/``name``: for a Btrfs file system,
    mountinfo shows an anonymous device number instead of the block device's.
    """
    for line in lines:
        before, _, after = line.partition(" - ")
        fields, source = before.split(), after.split()[1:2]
        if len(fields) >= 5 and (fields[2] == numbers or source == [f"/dev/{name}"]):
            return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
    return ""


def is_swap(lines: Iterable[str], name: str) -> bool:
    """Whether /proc/swaps (proc_swaps(5)) lists a block device."""
    return any(line.split()[:1] == [f"/dev/{name}"] for line in lines)


def _check_virtual_functions(address: str, root: str) -> None:
    try:
        number = sysfs.read_number(address, "sriov_numvfs", root=root)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise DeviceError(f"{address}: its sriov_numvfs cannot be read from sysfs: {sysfs.explain(error)}") from None
    if number > 0:
        raise DeviceError(
            f"{address} has {number} virtual function{'' if number == 1 else 's'}: "
            "VFIO does not accept a function with SR-IOV enabled",
            hint=f"bind virtual functions instead, or write 0 to /sys/bus/pci/devices/{address}/sriov_numvfs to remove "
            "them",
        )


def _check_network(address: str, root: str) -> None:
    names = f"{root}/sys/class/net"
    for interface in sorted(_below(names, address)):
        users = _with_uppers(names, interface)
        master = _basename(f"{names}/{interface}/master")
        if master:
            raise DeviceError(
                f"{address} is the network interface {interface}, which is a port of {master}",
                hint=f"if the host does not need it there, remove it: `ip link set {interface} nomaster`",
            )
        route = _search(f"{root}/proc/net/route", ipv4_route, users)
        route = route or _search(f"{root}/proc/net/ipv6_route", ipv6_route, users)
        if route:
            raise DeviceError(
                f"{address} is the network interface {interface}, and {route}",
                hint=f"if the host does not need it, set it down: `ip link set {interface} down`",
            )


def _check_disks(address: str, root: str, claimed: Callable[[str], bool]) -> None:
    blocks = f"{root}/sys/class/block"
    below = _below(blocks, address)
    heads = {f"nvme{match[1]}n{match[2]}" for match in map(_NVME_PATH.fullmatch, below) if match}
    for head in heads:
        below |= _below(blocks, head)
    for disk in sorted(below):
        name = disk.replace("!", "/")  # sysfs shows a "/" in a name as "!", for example in cciss/c0d0
        place = _search(f"{root}/proc/self/mountinfo", mounted_at, _read(f"{blocks}/{disk}/dev"), name)
        if place:
            how, remedy = f"mounted at {place}", "unmount it"
        elif _search(f"{root}/proc/swaps", is_swap, name):
            how, remedy = "used as swap", f"stop using it: `swapoff /dev/{name}`"
        elif users := _entries(f"{blocks}/{disk}/holders"):
            how, remedy = f"part of {', '.join(sorted(users))}", "remove it from that: see dmsetup(8), lvm(8), mdadm(8)"
        elif claimed(f"{root}/dev/{name}"):
            how, remedy = "in exclusive use", f"find its user: `lsof /dev/{name}`, `zpool status`, `lsns -t mnt`"
        else:
            continue
        raise DeviceError(f"{address} has the disk {name}, which is {how}", hint=remedy)


def _below(directory: str, ancestor: str) -> set[str]:
    """The entries of a sysfs class that are a device or are below it, according to the targets of their links."""
    return {name for name in _entries(directory) if ancestor in _link(f"{directory}/{name}").split("/")}


def _with_uppers(names: str, interface: str) -> set[str]:
    """The interface, and all interfaces that are stacked on it, such as VLANs."""
    interfaces: set[str] = set()
    queue = [interface]
    while queue:
        name = queue.pop()
        if name not in interfaces:
            interfaces.add(name)
            uppers = (entry for entry in _entries(f"{names}/{name}") if entry.startswith("upper_"))
            queue += [upper.removeprefix("upper_") for upper in uppers]
    return interfaces


def _search(path: str, function: Callable[..., _Result], *arguments: object) -> _Result | None:
    """The result of a function for a file's lines; None if the file does not exist, as on a host without IPv6."""
    try:
        with open(path, errors="replace") as file:
            return function(file, *arguments)
    except FileNotFoundError:
        return None


def _entries(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _basename(path: str) -> str:
    return os.path.basename(_link(path))


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read(64).strip()
    except OSError:
        return ""
