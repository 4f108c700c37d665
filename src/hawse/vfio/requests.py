"""Find the VFIO nodes among the devices of a specification, and the groups that they belong to."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from hawse.errors import DeviceError
from hawse.vfio import group_members, sysfs
from hawse.vfio.emulated import EmulatedGroup, find
from hawse.vfio.groups import HostGroup, check_viable, read_group
from hawse.vfio.node import CONTAINER_NUMBERS, CONTAINER_PATH, IOMMU_PATH, VfioNode, file_node, group_node

Group = HostGroup | EmulatedGroup
_GROUP_PATH = re.compile(r"/dev/vfio/(\d{1,9})")
#: The kernel's names for a group's node and for a device file.
_BOUND, _DEVICE_FILE = re.compile(r"vfio/(\d+)"), re.compile(r"vfio-dev/vfio\d+")

_WITHOUT_IOMMU = "vfio/noiommu-"


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
class Request:
    """All VFIO nodes of a specification, and their groups, each once, in the order of their first nodes.

    ``files`` are the nodes of the device file interface: /dev/iommu, whose group is None, and /dev/vfio/devices/vfioN.
    """

    nodes: tuple[VfioNode, ...]
    groups: tuple[Group, ...]
    files: tuple[VfioNode, ...] = ()


def find_request(
    devices: Sequence[Device], *, emulated: Mapping[int, EmulatedGroup], managed: bool = False, root: str = ""
) -> Request:
    """Find the entries that are VFIO nodes, by their numbers: the path of a node in a container is arbitrary.

    An emulated group is found by its path, too (:func:`hawse.vfio.emulated.find`). A group whose functions will be
    bound to vfio-pci (``managed``) is found only by its path, since its node does not exist yet. The device file of an
    emulated group's first function has the group's number.

    Raises :class:`DeviceError` for a node of a group that does not exist, or of an interface that cannot be passed.
    """
    host = _Host(emulated, managed, root)
    nodes = [node for device in devices if device.type in ("c", "u") and (node := host.find(device)) is not None]
    return Request(
        tuple(node for node in nodes if not node.is_file),
        tuple(host.groups.values()),
        tuple(node for node in nodes if node.is_file),
    )


@dataclass(frozen=True)
class _Host:
    """Finds nodes on the host; ``root`` contains /sys, /proc and /dev. ``groups`` are the groups found so far."""

    emulated: Mapping[int, EmulatedGroup]
    managed: bool
    root: str
    groups: dict[int, Group] = field(default_factory=dict)

    def find(self, device: Device) -> VfioNode | None:
        """The VFIO node of an entry of linux.devices; None for another device. Raises :class:`DeviceError`."""
        path, major, minor = device.path, device.major or 0, device.minor or 0
        if self.emulated and (match := find(path, major, minor, self.emulated, root=self.root)):
            number, is_file = match
            self.groups[number] = self.emulated[number]
            make = file_node if is_file else group_node
            return make(number, path=path, major=major, minor=minor)
        kernel = sysfs.character_device(major, minor, root=self.root)
        if path == CONTAINER_PATH or kernel == "misc/vfio" or (major, minor) == CONTAINER_NUMBERS:
            return VfioNode(path=path, major=major, minor=minor, host_group=None)
        if bound := _BOUND.fullmatch(kernel):
            return group_node(self._read(int(bound[1])), path=path, major=major, minor=minor)
        if kernel == "misc/iommu" or (self.emulated and path == IOMMU_PATH):
            return file_node(None, path=path, major=major, minor=minor)
        if _DEVICE_FILE.fullmatch(kernel):
            address, number = _behind_file(path, major, minor, self.root)
            return file_node(self._read(number), path=path, major=major, minor=minor, function=address)
        named = _GROUP_PATH.fullmatch(path)
        group = int(named[1]) if named else None
        if self.managed and group is not None and not kernel.startswith(_WITHOUT_IOMMU) and self._exists(group):
            return group_node(self._read(group), path=path, major=major, minor=minor)
        self._refuse(path, (major, minor), kernel, group)
        return None

    def _read(self, number: int) -> int:
        """Add a group of the host to ``groups``. Returns its number. Raises :class:`DeviceError`."""
        if number not in self.groups:
            self.groups[number] = read_group(number, root=self.root)
        return number

    def _exists(self, group: int) -> bool:
        return bool(sysfs.group_members(group, root=self.root))

    def _refuse(self, path: str, numbers: tuple[int, int], kernel: str, group: int | None) -> None:
        """Raise :class:`DeviceError` for a node that looks like VFIO's, by its path or by the kernel's name for it."""
        major, minor = numbers
        if path == IOMMU_PATH or path.startswith("/dev/vfio/devices/"):
            raise DeviceError(
                f"linux.devices: {path}: no VFIO device has the number {major}:{minor}",
                hint="bind the device to vfio-pci, or correct major and minor; device files need a kernel with "
                "CONFIG_VFIO_DEVICE_CDEV",
            )
        if "noiommu-" in path or kernel.startswith(_WITHOUT_IOMMU):
            raise DeviceError(
                f"linux.devices: {path}: a device without an IOMMU cannot be passed to a VM",
                hint="enable the host's IOMMU",
            )
        if group is not None:
            if self._exists(group):
                # The kernel removes the node when the last function of the group leaves vfio-pci. The error names the
                # present drivers.
                check_viable(read_group(group, root=self.root))
            raise DeviceError(
                f"linux.devices: {path}: group {group} is missing: no VFIO device has the number {major}:{minor}",
                hint="bind the group's devices to vfio-pci, or correct major and minor",
            )
        if self.emulated and "vfio" in path and not kernel:
            raise DeviceError(
                f"linux.devices: {path}: neither a device of the host nor an emulated group has the number "
                f"{major}:{minor}",
                hint="name the emulated group N by the path /dev/vfio/N, or by VFIO's major and the minor N",
            )


def device_files(group: Group, *, root: str = "") -> list[VfioNode]:
    """The device files of a group. In an emulated group only the first function has one, as in :func:`find_request`."""
    if isinstance(group, EmulatedGroup):
        path = f"/dev/vfio/devices/vfio{group.number}"
        return [file_node(group.number, path=path, major=0, minor=group.number)]
    files = [(function.address, sysfs.device_file(function.address, root=root)) for function in group.functions]
    return [
        file_node(group.number, path=f"/dev/vfio/devices/vfio{file[0]}", major=file[1], minor=file[2], function=address)
        for address, file in files
        if file
    ]


def _behind_file(path: str, major: int, minor: int, root: str) -> tuple[str, int]:
    """The address and the group of the function that a device file belongs to.

    The path in sysfs is .../0000:3b:00.0/vfio-dev/vfio0 (Linux Documentation/ABI/testing/sysfs-devices-vfio-dev).
    """
    address = os.readlink(f"{root}/sys/dev/char/{major}:{minor}").rstrip("/").split("/")[-3]
    if group_members.mediated([address]):
        group_members.check_names([address], where=f"linux.devices: {path}")
    number = sysfs.iommu_group(address, root=root)
    if number is None:
        raise DeviceError(
            f"linux.devices: {path}: {address} is not in an IOMMU group",
            hint="only PCI functions behind an IOMMU can be passed",
        )
    return address, number
