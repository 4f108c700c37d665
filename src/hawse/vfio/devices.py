"""The VFIO nodes among the devices of a spec, and the groups behind them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from hawse.errors import DeviceError
from hawse.vfio import members, sysfs
from hawse.vfio.emulated import EmulatedGroup, find
from hawse.vfio.groups import HostGroup, check_viable, read_group

CONTAINER_PATH = "/dev/vfio/vfio"
IOMMU_PATH = "/dev/iommu"
_GROUP_PATH = re.compile(r"/dev/vfio/(\d{1,9})")
_CONTAINER = (10, 196)  # misc device, VFIO_MINOR in Linux include/linux/miscdevice.h


class Device(Protocol):
    """An entry of linux.devices."""

    @property
    def path(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def major(self) -> int | None: ...
    @property
    def minor(self) -> int | None: ...


@dataclass(frozen=True)
class Node:
    """A VFIO node of the spec; ``group`` is None for the container node and for /dev/iommu.

    ``function`` is the address of the function whose device file it is, "" for an emulated one.
    """

    path: str
    major: int
    minor: int
    group: int | None
    function: str = ""


@dataclass(frozen=True)
class Request:
    """All VFIO nodes of a spec, and the groups behind them in the order in which they are named, each once.

    ``files`` are those of the device file interface: /dev/iommu, whose group is None, and /dev/vfio/devices/vfioN.
    """

    nodes: tuple[Node, ...]
    groups: tuple[HostGroup | EmulatedGroup, ...]
    files: tuple[Node, ...] = ()


def find_request(
    devices: Sequence[Device], *, emulated: Mapping[int, EmulatedGroup], managed: bool = False, root: str = ""
) -> Request:
    """Which entries are VFIO's, by their numbers and not by their path, which is the container's to choose.

    An emulated group is found by its path, too (:func:`hawse.vfio.emulated.find`), and a group whose functions will be
    bound to vfio-pci (``managed``) by its path alone: its node is not there yet. The device file of an emulated group's
    first function has the group's number. Raises :class:`DeviceError` for a node that names a group which is not there,
    or an interface that is not passed.
    """
    nodes: list[Node] = []
    files: list[Node] = []
    groups: dict[int, HostGroup | EmulatedGroup] = {}
    for device in devices:
        if device.type not in ("c", "u"):
            continue
        major, minor = device.major or 0, device.minor or 0
        named = _GROUP_PATH.fullmatch(device.path)
        if emulated and (found := find(device.path, major, minor, emulated, root=root)):
            number, is_file = found
            groups[number] = emulated[number]
            (files if is_file else nodes).append(Node(device.path, major, minor, number))
            continue
        kernel = sysfs.character_device(major, minor, root=root)
        if device.path == CONTAINER_PATH or kernel == "misc/vfio" or (major, minor) == _CONTAINER:
            nodes.append(Node(device.path, major, minor, None))
        elif re.fullmatch(r"vfio/\d+", kernel):
            number = int(kernel.partition("/")[2])
            if number not in groups:
                groups[number] = read_group(number, root=root)
            nodes.append(Node(device.path, major, minor, number))
        elif kernel == "misc/iommu" or (emulated and device.path == IOMMU_PATH):
            files.append(Node(device.path, major, minor, None))
        elif re.fullmatch(r"vfio-dev/vfio\d+", kernel):
            address, number = _behind_file(device.path, major, minor, root)
            groups.setdefault(number, read_group(number, root=root))
            files.append(Node(device.path, major, minor, number, address))
        elif device.path == IOMMU_PATH or device.path.startswith("/dev/vfio/devices/"):
            raise DeviceError(
                f"linux.devices: {device.path}: no VFIO device is {major}:{minor}",
                hint="bind the device to vfio-pci, or correct major and minor; this needs CONFIG_VFIO_DEVICE_CDEV",
            )
        elif "noiommu-" in device.path or kernel.startswith("vfio/noiommu-"):
            raise DeviceError(
                f"linux.devices: {device.path}: a device without an IOMMU cannot be given to a virtual machine",
                hint="turn the host's IOMMU on",
            )
        elif named and managed and sysfs.group_members(int(named[1]), root=root):
            number = int(named[1])
            groups.setdefault(number, read_group(number, root=root))
            nodes.append(Node(device.path, major, minor, number))
        elif named:
            if sysfs.group_members(int(named[1]), root=root):
                # The node is gone when the last device left vfio-pci: say which driver has them now.
                check_viable(read_group(int(named[1]), root=root))
            raise DeviceError(
                f"linux.devices: {device.path}: group {named[1]} is absent: no VFIO device is {major}:{minor}",
                hint="bind the group's devices to vfio-pci, or correct major and minor",
            )
        elif emulated and "vfio" in device.path and not kernel:
            raise DeviceError(
                f"linux.devices: {device.path}: no device of the host is {major}:{minor}, and no emulated group",
                hint="name an emulated group as /dev/vfio/N, or with the minor N and VFIO's major",
            )
    return Request(tuple(nodes), tuple(groups.values()), tuple(files))


def device_files(group: HostGroup | EmulatedGroup, *, root: str = "") -> list[Node]:
    """The device files that a group has: an emulated one's are as many as :func:`find_request` knows, one."""
    if isinstance(group, EmulatedGroup):
        return [Node(f"/dev/vfio/devices/vfio{group.number}", 0, group.number, group.number)]
    found = [(function.address, sysfs.device_file(function.address, root=root)) for function in group.functions]
    return [
        Node(f"/dev/vfio/devices/vfio{file[0]}", file[1], file[2], group.number, address)
        for address, file in found
        if file
    ]


def _behind_file(path: str, major: int, minor: int, root: str) -> tuple[str, int]:
    """The function behind a device file, and its group: .../0000:3b:00.0/vfio-dev/vfio0 (Linux
    Documentation/ABI/testing/sysfs-devices-vfio-dev)."""
    address = os.readlink(f"{root}/sys/dev/char/{major}:{minor}").rstrip("/").split("/")[-3]
    if members.mediated([address]):
        members.check_names([address], where=f"linux.devices: {path}")
    number = sysfs.iommu_group(address, root=root)
    if number is None:
        raise DeviceError(
            f"linux.devices: {path}: {address} is in no IOMMU group",
            hint="only PCI functions behind an IOMMU are passed",
        )
    return address, number
