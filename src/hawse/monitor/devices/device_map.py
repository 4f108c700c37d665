"""The mapping from functions of the host to the guest, for ``hawse state`` and for programs in the container. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hawse.json_text import Document
from hawse.monitor.agent.answers import NativeFunction
from hawse.monitor.devices.guest_nodes import container_paths, function_nodes
from hawse.plan.model import PlugStep
from hawse.vfio.node import VfioNode


def device_map(
    plugs: Sequence[PlugStep],
    nodes: Sequence[VfioNode],
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
            own = function_nodes(plug, nodes)
            entry["guest"] = {"address": plug.guest_address, "group": own[0].guest_group}
            entry["nodes"] = list(dict.fromkeys(path for node in own for path in container_paths(node, nodes)))
        entries.append(entry | ({"note": plug.note} if plug.note else {}))
    return entries
