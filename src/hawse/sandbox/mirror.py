"""Which function of the host is which in the guest: for ``hawse state``, and for programs in the container. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hawse.sandbox.native import Native
from hawse.sandbox.plan import NodeRequest, PlugStep


def mirror(
    plugs: Sequence[PlugStep],
    nodes: Sequence[NodeRequest],
    groups: Mapping[int, tuple[int, int, int]],
    natives: Mapping[str, Native],
) -> list[dict[str, Any]]:
    """An entry for each function: what it is, its address and group on the host and in the guest, its nodes.

    ``groups`` maps a group of the host to its number in the guest and its node's numbers there. ``note`` is there where
    the address is not the host's, and tells why. ``natives`` are those that the guest's own drivers have, by QEMU's
    name: they are in no group there, and ``driver`` and ``interfaces`` say what they are.
    """
    own = {numbers[0] for numbers in groups.values()}
    entries = []
    for plug in plugs:
        host = {"address": plug.host, "group": plug.group}
        native = natives.get(plug.device)
        if native is not None:
            seen: dict[str, Any] = {"device": plug.label, "host": host}
            seen["guest"] = {"address": plug.guest_address, "driver": native.driver}
            seen["interfaces"] = list(native.interfaces)
            seen["nodes"] = [path for path, *_ in native.nodes]
            entries.append(seen | ({"note": plug.note} if plug.note else {}))
            continue
        guest = groups[plug.group][0]
        paths = [f"/dev/vfio/{guest}"]
        for node in nodes:
            # Where the path is another group's number in the guest, that group's node is there.
            taken = any(node.path == f"/dev/vfio/{number}" for number in own)
            if node.group == plug.group and not taken:
                paths.append(node.path)
        entry = {
            "device": plug.label,
            "host": host,
            "guest": {"address": plug.guest_address, "group": guest},
            "nodes": paths,
        }
        entries.append(entry | ({"note": plug.note} if plug.note else {}))
    return entries
