"""Which function of the host is which in the guest: for ``hawse state``, and for programs in the container. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hawse.sandbox.plan import NodeRequest, PlugStep


def mirror(
    plugs: Sequence[PlugStep], nodes: Sequence[NodeRequest], groups: Mapping[int, tuple[int, int, int]]
) -> list[dict[str, Any]]:
    """An entry for each function: what it is, its address and group on the host and in the guest, its nodes.

    ``groups`` maps a group of the host to its number in the guest and its node's numbers there. ``note`` is there where
    the address is not the host's, and tells why.
    """
    own = {numbers[0] for numbers in groups.values()}
    entries = []
    for plug in plugs:
        guest = groups[plug.group][0]
        paths = [f"/dev/vfio/{guest}"]
        for node in nodes:
            # Where the path is another group's number in the guest, that group's node is there.
            taken = any(node.path == f"/dev/vfio/{number}" for number in own)
            if node.group == plug.group and not taken:
                paths.append(node.path)
        entry = {
            "device": plug.label,
            "host": {"address": plug.host, "group": plug.group},
            "guest": {"address": plug.guest_address, "group": guest},
            "nodes": paths,
        }
        entries.append(entry | ({"note": plug.note} if plug.note else {}))
    return entries
