"""VFIO nodes with their groups, paths and numbers in the guest, from the guest's answers. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from msgspec.structs import replace

from hawse.errors import DeviceError
from hawse.monitor.agent.answers import BoundFunction
from hawse.plan.model import PlugStep
from hawse.vfio.node import CONTAINER_NUMBERS, IOMMU_PATH, VfioNode


def locate(nodes: Iterable[VfioNode], plugs: Sequence[PlugStep], functions: Sequence[BoundFunction]) -> list[VfioNode]:
    """The nodes with their groups, paths and numbers in the guest. ``functions`` are the guest's answers for ``plugs``.

    Raises :class:`DeviceError` if the guest has split or merged groups.
    """
    groups = _groups(plugs, functions)
    files = {plug.device: function for plug, function in zip(plugs, functions, strict=True) if _has_files(function)}
    return [_located(node, groups, files) for node in nodes]


def function_nodes(plug: PlugStep, nodes: Iterable[VfioNode]) -> list[VfioNode]:
    """The nodes that a function uses: first its group's, then its device files."""
    own = [node for node in nodes if node.host_group == plug.group and (not node.is_file or node.device == plug.device)]
    return sorted(own, key=lambda node: node.is_file)


def container_paths(node: VfioNode, nodes: Iterable[VfioNode]) -> list[str]:
    """The paths in the container of one of the container's ``nodes``; none if the guest kernel does not have it.

    A node is at its path in the guest, where libraries look for it, and at its path in the specification, unless the
    guest has another node there.
    """
    if node.guest_numbers is None:
        return []
    if node.guest_path in ("", node.path):
        return [node.path]
    return [node.guest_path] if owner_of_path(node, nodes) else [node.guest_path, node.path]


def owner_of_path(node: VfioNode, nodes: Iterable[VfioNode]) -> VfioNode | None:
    """The other node that the guest has at the node's path in the specification."""
    owners = [each for each in nodes if each.guest_path == node.path and each.guest_numbers is not None]
    return next((owner for owner in owners if owner.guest_numbers != node.guest_numbers), None)


def _located(node: VfioNode, groups: Mapping[int, BoundFunction], files: Mapping[str, BoundFunction]) -> VfioNode:
    if node.host_group is None and not node.is_file:
        return replace(node, guest_numbers=CONTAINER_NUMBERS)
    if node.host_group is None:
        iommu = next((function.iommu for function in files.values()), None)
        path, numbers = (IOMMU_PATH, (iommu.major, iommu.minor)) if iommu else (node.path, None)
        return replace(node, guest_path=path, guest_numbers=numbers)
    group = groups[node.host_group]
    if not node.is_file:
        path, numbers = f"/dev/vfio/{group.group}", (group.major, group.minor)
    elif node.device in files and (file := files[node.device].file):
        path, numbers = f"/dev/vfio/devices/vfio{file.number}", (file.major, file.minor)
    else:
        path, numbers = node.path, None
    return replace(node, guest_group=group.group, guest_path=path, guest_numbers=numbers)


def _has_files(function: BoundFunction) -> bool:
    return function.file is not None and function.iommu is not None


def _groups(plugs: Sequence[PlugStep], functions: Sequence[BoundFunction]) -> dict[int, BoundFunction]:
    """A function of each group in the guest, by the group's number on the host."""
    groups: dict[int, BoundFunction] = {}
    hosts: dict[int, int] = {}
    for plug, function in zip(plugs, functions, strict=True):
        first = groups.setdefault(plug.group, function)
        if (first.group, first.major, first.minor) != (function.group, function.major, function.minor):
            raise DeviceError(
                f"{plug.label}: is in the guest's group {function.group}, but others of host group {plug.group} are in "
                f"{first.group}",
                hint="console.log shows the groups of the guest's IOMMU",
            )
        if (other := hosts.setdefault(function.group, plug.group)) != plug.group:
            raise DeviceError(
                f"{plug.label} of host group {plug.group}: in the guest's group {function.group}, as is host group "
                f"{other}",
                hint="console.log shows the groups of the guest's IOMMU",
            )
    return groups
