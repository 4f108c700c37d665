"""The mode guest-kernel: devices are left to the guest's own drivers, and the spec's VFIO nodes vanish. Pure."""

from __future__ import annotations

from hawse.json_text import Document
from hawse.oci.document import devices_of, rules_of, with_devices
from hawse.oci.guest.share import Share
from hawse.vfio.requests import Request

#: Below the container's part of the share: the guest's modules that no sandbox needs but for this.
SHARE = "drivers"
_RIGHTS = ("fileMode", "uid", "gid")


def take_out(request: Request, spec: Document) -> tuple[Request, Document, dict[int, dict[str, int]]]:
    """The request and the specification without VFIO nodes, and the rights that each group's node had."""
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
    """The modules of an image, as the guest gets them."""
    return Share(name=SHARE, source=directory, is_dir=True, readonly=True)
