"""VFIO nodes in a container's spec, moved from the host's numbers to the guest's. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence

from hawse.vfio.device_rules import translate

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from typing import Any

#: Below /dev, which is a file system of the container's own: nothing of this is left in its root file system.
DEVICES_FILE = "/dev/hawse/devices.json"


class Node:
    """A VFIO node of the spec. ``group`` is the guest's group number, None for the container node and for /dev/iommu.

    ``own`` is where the guest has it, "" for the container node. ``numbers`` is None for a device file that the guest
    has not.
    """

    __slots__ = ("group", "host", "numbers", "own", "path")

    def __init__(
        self, path: str, host_major: int, host_minor: int, group: int | None, major: int | None, minor: int | None,
        own: str = "",
    ) -> None:  # fmt: skip
        self.path = path
        self.host = (host_major, host_minor)
        self.group = group
        self.numbers = None if major is None or minor is None else (major, minor)
        self.own = own if own or group is None else f"/dev/vfio/{group}"


def rewrite_devices(spec: dict[str, Any], nodes: Sequence[Node]) -> list[list[str]]:
    """Change ``linux.devices`` and ``linux.resources.devices`` in place; what to log, as [level, text].

    A node stands where the guest has it, by the guest's number, since libraries look for it there, and at the path
    that the spec asks for. Where the path asked for is another's in the guest, that other's node wins. A device file
    that the guest has not is left out. What may be opened is what the rules of the spec say of the host's node.
    """
    if not nodes:
        return []
    log: list[list[str]] = []
    linux = spec.setdefault("linux", {})
    linux["devices"] = _rewrite_nodes(linux.get("devices") or [], nodes, log)
    resources = linux.setdefault("resources", {})
    rules = resources.get("devices")
    if rules:
        resources["devices"] = translate(rules, [(node.host, node.numbers) for node in nodes])
    return log


def show(spec: dict[str, Any], devices: Sequence[dict[str, Any]], path: str) -> None:
    """Write which device of the host is which in the guest to a file, and have it bound to DEVICES_FILE."""
    write_map(path, devices)
    mount = {"destination": DEVICES_FILE, "type": "bind", "source": path, "options": ["bind", "ro", "nosuid", "noexec"]}
    spec["mounts"] = [*(spec.get("mounts") or []), mount]


def write_map(path: str, devices: Sequence[dict[str, Any]]) -> None:
    """Replace the content of the file that a container sees at DEVICES_FILE: the file itself is bound there."""
    with open(path, "w") as file:
        file.write(map_text(devices))


def map_text(devices: Sequence[dict[str, Any]]) -> str:
    """The content of that file."""
    return json.dumps(devices, indent=2) + "\n"


def _rewrite_nodes(devices: list[dict[str, Any]], nodes: Sequence[Node], log: list[list[str]]) -> list[dict[str, Any]]:
    by_path = {node.path: node for node in nodes}
    own_paths = {node.own: node for node in nodes if node.own and node.numbers is not None}
    result: list[dict[str, Any]] = []
    placed: set[str] = set()
    for device in devices:
        node = by_path.get(device["path"])
        if node is None:
            result.append(device)
            continue
        if node.numbers is None:
            instead = "/dev/vfio/vfio" if node.group is None else f"/dev/vfio/{node.group}"
            text = f"{node.path}: the guest's kernel has no device files of VFIO: {instead} is in its place"
            log.append(["warning", text])
            continue
        moved = {**device, "major": node.numbers[0], "minor": node.numbers[1]}
        paths = [node.path]
        if node.own:
            winner = own_paths.get(node.path)
            if winner is not None and winner.numbers != node.numbers:
                what = "group" if node.own == f"/dev/vfio/{node.group}" else "device"
                text = f"{node.path} is another {what}'s number in the guest: the node asked for is at {node.own} alone"
                log.append(["warning", text])
                paths = [node.own]
            elif node.own != node.path:
                log.append(["debug", f"{node.path} is {node.own} in the guest, and its node is there too"])
                paths.append(node.own)
        for path in paths:
            if path not in placed:
                placed.add(path)
                result.append({**moved, "path": path})
    return result
