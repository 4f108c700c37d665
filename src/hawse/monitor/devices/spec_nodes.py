"""VFIO nodes in the specification for the guest, with their paths and numbers in the guest. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hawse.json_text import Document
from hawse.monitor.devices.guest_nodes import container_paths, owner_of_path
from hawse.notes import Note, debug, warning
from hawse.oci.document import devices_of, rules_of, with_devices
from hawse.vfio.node import CONTAINER_PATH, VfioNode
from hawse.vfio.rule_numbers import translate

Numbers = tuple[int, int]


def with_guest_nodes(
    spec: Mapping[str, Any], nodes: Sequence[VfioNode], misc_numbers: Mapping[Numbers, Numbers]
) -> tuple[Document, list[Note]]:
    """The specification with the guest's nodes and device rules, and notes to log.

    A node is created at its path in the guest, where libraries look for it, and at its path in the specification. If
    the latter is the guest's path of another node, only the other node is created there. A device file that is missing
    in the guest kernel is left out. The rules for the host's node decide what may be opened.

    ``misc_numbers`` are the guest's numbers of misc devices, by their numbers on the host. They are translated together
    with those of VFIO nodes, since both have the same major.
    """
    if not (devices_of(spec) or rules_of(spec)):
        return dict(spec), []
    devices, notes = _place(devices_of(spec), nodes, misc_numbers)
    moves: list[tuple[Numbers, Numbers | None]] = [(node.host_numbers, node.guest_numbers) for node in nodes]
    rules = translate(rules_of(spec), [*moves, *_present(devices_of(spec), misc_numbers)])
    return with_devices(spec, devices, rules), notes


def _present(
    devices: Sequence[Mapping[str, Any]], misc_numbers: Mapping[Numbers, Numbers]
) -> list[tuple[Numbers, Numbers]]:
    hosts = [_numbers(device) for device in devices if device["type"] in ("c", "u")]
    return [(host, misc_numbers[host]) for host in hosts if host in misc_numbers]


def _numbers(device: Mapping[str, Any]) -> Numbers:
    return device.get("major") or 0, device.get("minor") or 0


def _place(
    devices: Sequence[Document], nodes: Sequence[VfioNode], misc_numbers: Mapping[Numbers, Numbers]
) -> tuple[list[Document], list[Note]]:
    by_path = {node.path: node for node in nodes}
    placed: dict[str, Document] = {}
    result: list[Document] = []
    notes: list[Note] = []
    for device in devices:
        node = by_path.get(device["path"])
        if node is None:
            result.append(_translated(device, misc_numbers))
            continue
        note = _note(node, nodes)
        notes += [note] if note else []
        for path in container_paths(node, nodes):
            if path not in placed and node.guest_numbers is not None:
                major, minor = node.guest_numbers
                placed[path] = {**device, "path": path, "major": major, "minor": minor}
                result.append(placed[path])
    return result, notes


def _translated(device: Document, misc_numbers: Mapping[Numbers, Numbers]) -> Document:
    if device["type"] not in ("c", "u") or _numbers(device) not in misc_numbers:
        return device
    major, minor = misc_numbers[_numbers(device)]
    return {**device, "major": major, "minor": minor}


def _note(node: VfioNode, nodes: Sequence[VfioNode]) -> Note | None:
    """A note to log about the paths of a node in the container."""
    if node.guest_numbers is None:
        instead = CONTAINER_PATH if node.guest_group is None else f"/dev/vfio/{node.guest_group}"
        return warning(f"{node.path}: the guest's kernel has no VFIO device files: use {instead} instead")
    if node.guest_path in ("", node.path):
        return None
    owner = owner_of_path(node, nodes)
    if owner is None:
        return debug(f"{node.path} is {node.guest_path} in the guest: both paths exist")
    kind = "device file" if owner.is_file else "group"
    return warning(f"{node.path} is the path of another {kind} in the guest: this node is at {node.guest_path} only")
