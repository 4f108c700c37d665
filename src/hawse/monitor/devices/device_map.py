"""The mapping from functions of the host to the guest, for ``hawse state`` and for programs in the container. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from hawse.json_text import Document
from hawse.monitor.agent.answers import NativeFunction
from hawse.plan.model import PlugStep
from hawse.vfio.node import CONTAINER_NUMBERS, VfioNode


class GuestGroup(NamedTuple):
    """A group in the guest: its number there, and the numbers of its node."""

    number: int
    major: int
    minor: int


class Place(NamedTuple):
    """Path, major and minor of a character device in the guest."""

    path: str
    major: int
    minor: int


Groups = dict[int, GuestGroup]
"""The guest's groups, by the group's number on the host."""
Files = dict[str, Place]
"""The guest's device files by the function's QEMU id, and /dev/iommu by ""; empty if the guest has no device files."""


def locate(nodes: Iterable[VfioNode], groups: Mapping[int, GuestGroup], files: Mapping[str, Place]) -> list[VfioNode]:
    """The nodes with their paths and numbers in the guest."""
    located = []
    for node in nodes:
        group = None if node.host_group is None else groups[node.host_group]
        if node.is_file:
            place = files.get(node.device)
            numbers = (place.major, place.minor) if place else None
            path = place.path if place else node.path
        elif group is not None:
            numbers, path = (group.major, group.minor), f"/dev/vfio/{group.number}"
        else:
            numbers, path = CONTAINER_NUMBERS, ""
        number = None if group is None else group.number
        located.append(replace(node, guest_group=number, guest_path=path, guest_numbers=numbers))
    return located


def device_map(
    plugs: Sequence[PlugStep],
    nodes: Sequence[VfioNode],
    groups: Mapping[int, GuestGroup],
    files: Mapping[str, Place],
    natives: Mapping[str, NativeFunction],
) -> list[Document]:
    """An entry for each function: its address and group on the host and in the guest, and its nodes.

    ``natives`` are functions bound to drivers of the guest kernel, by QEMU's id. Their entries have ``driver`` and
    ``interfaces``, and no group in the guest. ``note`` is the reason why the address in the guest differs from the
    host's.
    """
    entries = []
    for plug in plugs:
        entry: Document = {"device": plug.label, "host": {"address": plug.host, "group": plug.group}}
        native = natives.get(plug.device)
        if native is not None:
            entry["guest"] = {"address": plug.guest_address, "driver": native.driver}
            entry["interfaces"] = list(native.interfaces)
            entry["nodes"] = [f"/dev/{node.name}" for node in native.nodes]
        else:
            entry["guest"] = {"address": plug.guest_address, "group": groups[plug.group].number}
            entry["nodes"] = [place.path for place in places(plug, nodes, groups, files)]
        entries.append(entry | ({"note": plug.note} if plug.note else {}))
    return entries


def places(
    plug: PlugStep,
    nodes: Sequence[VfioNode],
    groups: Mapping[int, GuestGroup],
    files: Mapping[str, Place],
) -> list[Place]:
    """The nodes of a function in the container: its group's node, and its device file if the plan has it.

    Each node is at the guest's path, and at the path in the specification unless another node is there in the guest.
    """
    group = groups[plug.group]
    taken = {f"/dev/vfio/{other.number}" for other in groups.values()}
    taken |= {files[node.device].path for node in nodes if node.device in files}
    requested = [node.path for node in nodes if node.host_group == plug.group and not node.is_file]
    paths = [f"/dev/vfio/{group.number}", *(path for path in requested if path not in taken)]
    result = [Place(path, group.major, group.minor) for path in paths]
    file = files.get(plug.device)
    requested = [node.path for node in nodes if node.is_file and node.device == plug.device]
    if file and requested:
        paths = [file.path, *(path for path in requested if path not in taken)]
        result += [Place(path, file.major, file.minor) for path in paths]
    return result
