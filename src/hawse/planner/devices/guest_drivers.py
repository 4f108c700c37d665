"""The mode guest-kernel: drivers of the guest kernel use the devices, and the spec's VFIO nodes are removed. Pure."""

from __future__ import annotations

from hawse.json_text import Document
from hawse.oci.document import devices_of, rules_of, with_devices
from hawse.oci.guest.share import Share
from hawse.vfio.requests import Request

#: Its name below the container's part of the share. It contains guest modules that only this mode needs.
SHARE = "drivers"
_RIGHTS = ("fileMode", "uid", "gid")


def take_out(request: Request, spec: Document) -> tuple[Request, Document, dict[int, dict[str, int]]]:
    """Remove the VFIO nodes from the request and the specification; also returns the rights of each group's node."""
    nodes = (*request.nodes, *request.files)
    paths = {node.path for node in nodes}
    numbers = {(node.major, node.minor) for node in nodes}
    asked = {device["path"]: device for device in devices_of(spec)}
    rights: dict[int, dict[str, int]] = {group.number: {} for group in request.groups}
    for node in nodes:
        if node.host_group is not None and node.path in asked:
            rights[node.host_group] = {key: asked[node.path][key] for key in _RIGHTS if key in asked[node.path]}
    devices = [device for device in devices_of(spec) if device["path"] not in paths]
    rules = [rule for rule in rules_of(spec) if (rule.get("major"), rule.get("minor")) not in numbers]
    return Request((), request.groups, ()), with_devices(spec, devices, rules), rights


def drivers(directory: str) -> Share:
    """The share with the drivers of an image."""
    return Share(name=SHARE, source=directory, is_dir=True, readonly=True)
