"""Functions bound to drivers of the guest kernel: their nodes in the specification, and the state's annotation.
Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from hawse.json_text import Document
from hawse.monitor.agent.answers import NativeFunction
from hawse.plan.model import PlugStep
from hawse.state.store import GUEST_DEVICES


def with_nodes(
    spec: Document,
    plugs: Sequence[PlugStep],
    natives: Mapping[str, NativeFunction],
    rights: Mapping[int, dict[str, int]],
) -> Document:
    """The specification with the nodes of these functions. The nodes get the mode and owners of their group's node."""
    linux = dict(spec.get("linux") or {})
    resources = dict(linux.get("resources") or {})
    devices, rules = list(linux.get("devices") or ()), list(resources.get("devices") or ())
    for plug in plugs:
        for node in natives[plug.device].nodes if plug.device in natives else ():
            numbers = {"type": node.kind, "major": node.major, "minor": node.minor}
            devices.append({"path": f"/dev/{node.name}", **rights.get(plug.group, {}), **numbers})
            rules.append({"allow": True, "access": "rwm", **numbers})
    return spec | {"linux": linux | {"devices": devices, "resources": resources | {"devices": rules}}}


def annotation(plugs: Sequence[PlugStep], natives: Mapping[str, NativeFunction]) -> dict[str, str]:
    """The state's annotation with the names of interfaces and nodes; empty if no function is in this mode."""
    names = {
        plug.host or plug.guest_address: [*native.interfaces, *(node.name for node in native.nodes)]
        for plug in plugs
        if (native := natives.get(plug.device)) is not None
    }
    return {GUEST_DEVICES: json.dumps(names)} if names else {}
