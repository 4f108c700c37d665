"""Numbers of devices in a specification, moved from the host's to the guest's. Pure.

In a guest a number may be another device's, or that of another container of the pod: a rule that names numbers of the
host is moved with the devices that it is about, or taken out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from hawse.oci.known import is_known

#: Kind ("b" or "c"), major and minor.
Numbers = tuple[str, int, int]
#: What no device has.
_NOTHING = {"major": 0, "minor": 0}


def without_strangers(rules: Sequence[dict[str, Any]], nodes: Collection[Numbers]) -> list[dict[str, Any]]:
    """The rules without those that allow numbers of the host which are none of the nodes', nor known in the guest.

    Of block devices nothing is left that is none of the nodes': in the guest all their numbers are others.
    """
    return [rule for rule in rules if not _is_strange(rule, nodes) or (_of(rule)[0] == "c" and not rule.get("allow"))]


def strangers(rules: Sequence[dict[str, Any]], nodes: Collection[Numbers]) -> list[str]:
    """What to warn of: rules that allow the container to read or write a device that none of its nodes is."""
    warnings = []
    for index, rule in enumerate(rules):
        if rule.get("allow") and set(rule.get("access") or "") & {"r", "w"} and _is_strange(rule, nodes):
            kind, major, minor = _of(rule)
            which = f"{kind} {major}:{'*' if minor is None else minor}"
            warnings.append(
                f"linux.resources.devices[{index}]: {which} has no effect: it is a number of the host's devices, and "
                "none of linux.devices has it [name the device in linux.devices]"
            )
    return warnings


def _is_strange(rule: dict[str, Any], nodes: Collection[Numbers]) -> bool:
    kind, major, minor = _of(rule)
    is_general = kind == "a" or major is None or (kind == "c" and is_known(major, minor))
    return not is_general and not _matching(rule, nodes)


def move(spec: dict[str, Any], moved: Mapping[Numbers, tuple[int, int]]) -> dict[str, Any]:
    """The specification with the guest's numbers, in nodes and rules; each rule once, so that moves do not chain."""
    linux = dict(spec.get("linux") or {})
    if linux.get("devices"):
        linux["devices"] = [_moved_node(device, moved) for device in linux["devices"]]
    resources = dict(linux.get("resources") or {})
    if resources.get("devices"):
        resources["devices"] = [new for rule in resources["devices"] for new in _moved_rule(rule, moved)]
        linux["resources"] = resources
    return spec | ({"linux": linux} if linux else {})


def named_nodes(spec: dict[str, Any], named: Mapping[tuple[int, int], tuple[int, int]]) -> list[list[Any]]:
    """Misc devices as nodes for the agent, which moves them together with VFIO's: their numbers are of one major."""
    return [
        [device["path"], *host, None, *named[host], ""]
        for device in (spec.get("linux") or {}).get("devices") or ()
        if device["type"] in ("c", "u") and (host := (device.get("major") or 0, device.get("minor") or 0)) in named
    ]


def _moved_node(device: dict[str, Any], moved: Mapping[Numbers, tuple[int, int]]) -> dict[str, Any]:
    kind = "b" if device["type"] == "b" else "c"
    if device["type"] == "p":
        return device
    major, minor = device.get("major") or 0, device.get("minor") or 0
    if (kind, major, minor) in moved:
        new = moved[kind, major, minor]
        return {**device, "major": new[0], "minor": new[1]}
    # A node that nothing may open: in the guest its number is one that is passed.
    taken = any(kind == other[0] and new == (major, minor) for other, new in moved.items())
    return {**device, **_NOTHING} if taken else device


def _moved_rule(rule: dict[str, Any], moved: Mapping[Numbers, tuple[int, int]]) -> list[dict[str, Any]]:
    kind, major, minor = _of(rule)
    if kind == "a" or major is None:
        return [rule]
    new = [{**rule, "major": moved[found][0], "minor": moved[found][1]} for found in _matching(rule, moved)]
    # Of the misc devices any minor number includes those that are not moved.
    return new if kind == "b" or (new and minor is not None) else [rule, *new]


def _matching(rule: dict[str, Any], nodes: Collection[Numbers]) -> list[Numbers]:
    kind, major, minor = _of(rule)
    return [node for node in nodes if node[0] == kind and node[1] == major and minor in (None, node[2])]


def is_wildcard(number: int | None) -> bool:
    """Whether a number of a rule stands for all numbers."""
    return number is None or number < 0


def _of(rule: dict[str, Any]) -> tuple[str, int | None, int | None]:
    """Kind, major and minor of a rule, None for any."""
    major, minor = rule.get("major"), rule.get("minor")
    kind = {"b": "b", "c": "c", "u": "c"}.get(rule.get("type") or "a", "a")
    return kind, None if is_wildcard(major) else major, None if is_wildcard(minor) else minor
