"""The mode guest-kernel: devices are left to the guest's own drivers, and the spec's VFIO nodes vanish. Pure."""

from __future__ import annotations

from typing import Any

from hawse.plan.model import Share
from hawse.vfio.requests import Request

#: Below the container's part of the share: the guest's modules that no sandbox needs but for this.
SHARE = "drivers"
_RIGHTS = ("fileMode", "uid", "gid")


def take_out(request: Request, spec: dict[str, Any]) -> tuple[Request, dict[int, dict[str, int]]]:
    """The request without nodes, the spec, changed here, without them too; and the rights that each group's had."""
    linux = spec.get("linux") or {}
    nodes = (*request.nodes, *request.files)
    paths = {node.path for node in nodes}
    numbers = {(node.major, node.minor) for node in nodes}
    asked = {device["path"]: device for device in linux.get("devices") or ()}
    rights: dict[int, dict[str, int]] = {group.number: {} for group in request.groups}
    for node in nodes:
        if node.host_group is not None and node.path in asked:
            rights[node.host_group] = {key: asked[node.path][key] for key in _RIGHTS if key in asked[node.path]}
    linux["devices"] = [device for device in linux.get("devices") or () if device["path"] not in paths]
    resources = linux.get("resources") or {}
    if resources.get("devices"):
        resources["devices"] = [
            rule for rule in resources["devices"] if (rule.get("major"), rule.get("minor")) not in numbers
        ]
    return Request((), request.groups, ()), rights


def drivers(directory: str) -> Share:
    """The modules of an image, as the guest gets them."""
    return Share(name=SHARE, source=directory, is_dir=True, readonly=True)
