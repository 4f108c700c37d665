"""VFIO nodes in the specification that the guest gets: where the guest has them, by the guest's numbers. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hawse.json_text import Document
from hawse.notes import Note, debug, warning
from hawse.vfio.device_rules import translate
from hawse.vfio.node import CONTAINER_PATH, VfioNode

Numbers = tuple[int, int]


def with_guest_nodes(
    spec: Mapping[str, Any], nodes: Sequence[VfioNode], named: Mapping[Numbers, Numbers]
) -> tuple[Document, list[Note]]:
    """The specification with the guest's nodes and rules, and what to log.

    A node is at the path that the guest has it at, since libraries look for it there, and at the path that the
    specification asks for. Where that path is another's in the guest, the other node wins. A device file that the
    guest's kernel does not have is left out. The rules of the host's node decide what may be opened.

    ``named`` are misc devices, by their numbers on the host: they are moved together with VFIO's, with which they share
    a major.
    """
    if not nodes and not named:
        return dict(spec), []
    linux = dict(spec.get("linux") or {})
    devices, notes = _place(linux.get("devices") or [], nodes, named)
    linux["devices"] = devices
    resources = dict(linux.get("resources") or {})
    if resources.get("devices"):
        moves: list[tuple[Numbers, Numbers | None]] = [(node.host_numbers, node.guest_numbers) for node in nodes]
        resources["devices"] = translate(resources["devices"], [*moves, *_present(linux_devices(spec), named)])
    linux["resources"] = resources
    return {**spec, "linux": linux}, notes


def linux_devices(spec: Mapping[str, Any]) -> list[Document]:
    """The specification's linux.devices."""
    return (spec.get("linux") or {}).get("devices") or []


def _present(devices: Sequence[Mapping[str, Any]], named: Mapping[Numbers, Numbers]) -> list[tuple[Numbers, Numbers]]:
    hosts = [_numbers(device) for device in devices if device["type"] in ("c", "u")]
    return [(host, named[host]) for host in hosts if host in named]


def _numbers(device: Mapping[str, Any]) -> Numbers:
    return device.get("major") or 0, device.get("minor") or 0


def _place(
    devices: Sequence[Document], nodes: Sequence[VfioNode], named: Mapping[Numbers, Numbers]
) -> tuple[list[Document], list[Note]]:
    by_path = {node.path: node for node in nodes}
    placed: dict[str, Document] = {}
    result: list[Document] = []
    notes: list[Note] = []
    for device in devices:
        node = by_path.get(device["path"])
        if node is None:
            result.append(_moved(device, named))
            continue
        paths, note = _paths(node, nodes)
        notes += [note] if note else []
        for path in paths:
            if path not in placed and node.guest_numbers is not None:
                major, minor = node.guest_numbers
                placed[path] = {**device, "path": path, "major": major, "minor": minor}
                result.append(placed[path])
    return result, notes


def _moved(device: Document, named: Mapping[Numbers, Numbers]) -> Document:
    if device["type"] not in ("c", "u") or _numbers(device) not in named:
        return device
    major, minor = named[_numbers(device)]
    return {**device, "major": major, "minor": minor}


def _paths(node: VfioNode, nodes: Sequence[VfioNode]) -> tuple[list[str], Note | None]:
    """The paths of a node in the container, and what to log of them."""
    if node.guest_numbers is None:
        instead = CONTAINER_PATH if node.guest_group is None else f"/dev/vfio/{node.guest_group}"
        return [], warning(f"{node.path}: the guest's kernel has no VFIO device files: use {instead} instead")
    if not node.guest_path or node.guest_path == node.path:
        return [node.path], None
    owners = {other.guest_path: other for other in nodes if other.guest_path and other.guest_numbers}
    owner = owners.get(node.path, node)
    if owner.guest_numbers != node.guest_numbers:
        kind = "device file" if owner.is_file else "group"
        return [node.guest_path], warning(
            f"{node.path} is the path of another {kind} in the guest: this node is at {node.guest_path} only"
        )
    return [node.path, node.guest_path], debug(f"{node.path} is {node.guest_path} in the guest: both paths exist")
