"""Find the VFIO nodes among the devices of a specification, and the groups that they belong to."""

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
    """An entry of linux.devices in the OCI configuration."""

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
    """A VFIO node of the specification; ``group`` is None for the container node and for /dev/iommu.

    ``function`` is the address of the function for a device file, and "" for any other node and for emulated functions.
    """

    path: str
    major: int
    minor: int
    group: int | None
    function: str = ""


@dataclass(frozen=True)
class Request:
    """All VFIO nodes of a specification, and their groups, each once, in the order of their first nodes.

    ``files`` are the nodes of the device file interface: /dev/iommu, whose group is None, and /dev/vfio/devices/vfioN.
    """

    nodes: tuple[Node, ...]
    groups: tuple[HostGroup | EmulatedGroup, ...]
    files: tuple[Node, ...] = ()


def find_request(
    devices: Sequence[Device], *, emulated: Mapping[int, EmulatedGroup], managed: bool = False, root: str = ""
) -> Request:
    """Find the entries that are VFIO nodes, by their numbers: the path of a node in a container is arbitrary.

    An emulated group is found by its path, too (:func:`hawse.vfio.emulated.find`). A group whose functions will be
    bound to vfio-pci (``managed``) is found only by its path, since its node does not exist yet. The device file of an
    emulated group's first function has the group's number.

    Raises :class:`DeviceError` for a node of a group that does not exist, or of an interface that cannot be passed.
    """
    nodes: list[Node] = []
    files: list[Node] = []
    groups: dict[int, HostGroup | EmulatedGroup] = {}
    for device in devices:
        if device.type not in ("c", "u"):
            continue
        major, minor = device.major or 0, device.minor or 0
        named = _GROUP_PATH.fullmatch(device.path)
        if emulated and (match := find(device.path, major, minor, emulated, root=root)):
            number, is_file = match
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
                f"linux.devices: {device.path}: no VFIO device has the number {major}:{minor}",
                hint="bind the device to vfio-pci, or correct major and minor; device files need a kernel with "
                "CONFIG_VFIO_DEVICE_CDEV",
            )
        elif "noiommu-" in device.path or kernel.startswith("vfio/noiommu-"):
            raise DeviceError(
                f"linux.devices: {device.path}: a device without an IOMMU cannot be passed to a VM",
                hint="enable the host's IOMMU",
            )
        elif named and managed and sysfs.group_members(int(named[1]), root=root):
            number = int(named[1])
            groups.setdefault(number, read_group(number, root=root))
            nodes.append(Node(device.path, major, minor, number))
        elif named:
            if sysfs.group_members(int(named[1]), root=root):
                # The kernel removes the node when the last function of the group leaves vfio-pci. The error names the
                # present drivers.
                check_viable(read_group(int(named[1]), root=root))
            raise DeviceError(
                f"linux.devices: {device.path}: group {named[1]} is missing: no VFIO device has the number "
                f"{major}:{minor}",
                hint="bind the group's devices to vfio-pci, or correct major and minor",
            )
        elif emulated and "vfio" in device.path and not kernel:
            raise DeviceError(
                f"linux.devices: {device.path}: neither a device of the host nor an emulated group has the number "
                f"{major}:{minor}",
                hint="name the emulated group N by the path /dev/vfio/N, or by VFIO's major and the minor N",
            )
    return Request(tuple(nodes), tuple(groups.values()), tuple(files))


def device_files(group: HostGroup | EmulatedGroup, *, root: str = "") -> list[Node]:
    """The device files of a group. In an emulated group only the first function has one, as in :func:`find_request`."""
    if isinstance(group, EmulatedGroup):
        return [Node(f"/dev/vfio/devices/vfio{group.number}", 0, group.number, group.number)]
    files = [(function.address, sysfs.device_file(function.address, root=root)) for function in group.functions]
    return [
        Node(f"/dev/vfio/devices/vfio{file[0]}", file[1], file[2], group.number, address)
        for address, file in files
        if file
    ]


def _behind_file(path: str, major: int, minor: int, root: str) -> tuple[str, int]:
    """The address and the group of the function that a device file belongs to.

    The path in sysfs is .../0000:3b:00.0/vfio-dev/vfio0 (Linux Documentation/ABI/testing/sysfs-devices-vfio-dev).
    """
    address = os.readlink(f"{root}/sys/dev/char/{major}:{minor}").rstrip("/").split("/")[-3]
    if members.mediated([address]):
        members.check_names([address], where=f"linux.devices: {path}")
    number = sysfs.iommu_group(address, root=root)
    if number is None:
        raise DeviceError(
            f"linux.devices: {path}: {address} is not in an IOMMU group",
            hint="only PCI functions behind an IOMMU can be passed",
        )
    return address, number
