"""Which function of the host is which in the guest: for ``hawse state``, and for programs in the container. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hawse.monitor.devices.guest_drivers import Native
from hawse.plan.model import NodeRequest, PlugStep

Place = tuple[str, int, int]
"""Path, major and minor of a character device."""


def mirror(
    plugs: Sequence[PlugStep],
    nodes: Sequence[NodeRequest],
    groups: Mapping[int, tuple[int, int, int]],
    files: Mapping[str, Place],
    natives: Mapping[str, Native],
) -> list[dict[str, Any]]:
    """An entry for each function: what it is, its address and group on the host and in the guest, its nodes.

    ``groups`` maps a group of the host to its number in the guest and its node's numbers there, ``files`` QEMU's name
    of a function to its device file there. ``note`` is there where the address is not the host's, and tells why.
    ``natives`` are those that the guest's own drivers have, by QEMU's name: they are in no group there, and ``driver``
    and ``interfaces`` say what they are.
    """
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
        entry = {
            "device": plug.label,
            "host": host,
            "guest": {"address": plug.guest_address, "group": groups[plug.group][0]},
            "nodes": [path for path, *_ in places(plug, nodes, groups, files)],
        }
        entries.append(entry | ({"note": plug.note} if plug.note else {}))
    return entries


def places(
    plug: PlugStep,
    nodes: Sequence[NodeRequest],
    groups: Mapping[int, tuple[int, int, int]],
    files: Mapping[str, Place],
) -> list[Place]:
    """The nodes of a function in the container: its group's, and its device file where that was asked for.

    Each where the guest has it and at the path asked for, unless that is another's in the guest, whose node is there.
    """
    guest, *numbers = groups[plug.group]
    taken = {f"/dev/vfio/{number}" for number, *_ in groups.values()}
    taken |= {files[node.device][0] for node in nodes if node.device in files}
    paths = [node.path for node in nodes if node.group == plug.group and not node.file and node.path not in taken]
    found: list[Place] = [(path, numbers[0], numbers[1]) for path in (f"/dev/vfio/{guest}", *paths)]
    file = files.get(plug.device)
    asked = [node.path for node in nodes if node.file and node.device == plug.device]
    if file and asked:
        paths = [path for path in asked if path not in taken]
        found += [(path, file[1], file[2]) for path in (file[0], *paths)]
    return found
