"""Nodes of VFIO groups that are added to a specification, and the nodes of the plan."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from hawse.json_text import Document
from hawse.oci.document import devices_of, rules_of, with_devices
from hawse.plan import model as plan
from hawse.vfio.node import VfioNode, container_node, group_node
from hawse.vfio.requests import Group, Request
from hawse.vfio.rule_numbers import of_node

_RIGHTS = ("fileMode", "uid", "gid")


def add_named(request: Request, groups: Sequence[Group], spec: Document) -> tuple[Request, Document]:
    """Add the groups that an annotation lists, and their nodes, to the request and the specification."""
    present = {node.host_group for node in request.nodes}
    new = [group for group in groups if group.number not in present]
    nodes = [container_node()] if new and None not in present else []
    nodes += [group_node(group.number) for group in new]
    for node in nodes:
        allowed = {"allow": True, "type": "c", "major": node.major, "minor": node.minor, "access": "rwm"}
        spec = _with_node(spec, node, {"fileMode": 0o666}, [allowed])
    return Request((*request.nodes, *nodes), (*request.groups, *new), request.files), spec


def with_groups(request: Request, spec: Document) -> tuple[Request, Document]:
    """Add the groups' nodes for requested device files to the request and the specification, with the same rights.

    Programs that support only groups, such as DPDK and SPDK, need these nodes. So does every program if the guest
    kernel does not support device files: Debian's kernels are built without CONFIG_IOMMUFD.
    """
    if not request.files:
        return request, spec
    rights = {device["path"]: device for device in devices_of(spec)}
    nodes = list(request.nodes)
    for file in request.files:
        if file.host_group in {node.host_group for node in nodes}:
            continue
        node = container_node() if file.host_group is None else group_node(file.host_group)
        nodes.append(node)
        rules = of_node(rules_of(spec), file.host_numbers, node.host_numbers)
        entry = rights.get(file.path, {})  # absent if another entry with this path was left out
        own = {key: entry[key] for key in _RIGHTS if key in entry}
        spec = _with_node(spec, node, own, rules)
    return Request(tuple(nodes), request.groups, request.files), spec


def planned_nodes(request: Request, plugs: Sequence[plan.PlugStep]) -> list[VfioNode]:
    """The nodes of a request; device files contain QEMU's id of their function.

    The functions of an emulated group have no host address: its device file belongs to function 0, which is plugged
    last.
    """
    ids: dict[tuple[int | None, str], str] = {(plug.group, plug.host): plug.device for plug in plugs}
    files = [replace(file, device=ids.get((file.host_group, file.function), "")) for file in request.files]
    return [*request.nodes, *files]


def _with_node(spec: Document, node: VfioNode, rights: Document, rules: Sequence[Document]) -> Document:
    """The specification with an additional node, and with rules for it at the end."""
    device = {"path": node.path, **rights, "type": "c", "major": node.major, "minor": node.minor}
    return with_devices(spec, [*devices_of(spec), device], [*rules_of(spec), *rules])
