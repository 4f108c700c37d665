"""Translate the device numbers in a specification from the host's to the guest's. Pure.

In the guest, a number of the host may belong to another device, or to a device of another container of the pod. So a
rule with numbers of the host is rewritten for the devices that it matches, or removed if it matches none.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from hawse.json_text import Document
from hawse.oci.guest.known_devices import is_known

#: Kind ("b" or "c"), major and minor.
Numbers = tuple[str, int, int]
#: A number that no device has.
_NO_DEVICE = {"major": 0, "minor": 0}


def without_strangers(rules: Sequence[Document], nodes: Collection[Numbers]) -> list[Document]:
    """The rules without those for numbers of the host that no node has and that the guest does not know.

    Of character devices, only rules that allow are removed. Of block devices, rules that deny are removed, too: in the
    guest all numbers of block devices differ.
    """
    return [
        rule for rule in rules if not _is_unmatched(rule, nodes) or (_pattern(rule)[0] == "c" and not rule.get("allow"))
    ]


def strangers(rules: Sequence[Document], nodes: Collection[Numbers]) -> list[str]:
    """Warnings about rules that let the container read or write a device that is not among its nodes."""
    warnings = []
    for index, rule in enumerate(rules):
        if rule.get("allow") and set(rule.get("access") or "") & {"r", "w"} and _is_unmatched(rule, nodes):
            kind, major, minor = _pattern(rule)
            which = f"{kind} {major}:{'*' if minor is None else minor}"
            warnings.append(
                f"linux.resources.devices[{index}]: {which} has no effect: it is the number of a host device that is "
                "not in linux.devices [add the device to linux.devices]"
            )
    return warnings


def _is_unmatched(rule: Document, nodes: Collection[Numbers]) -> bool:
    kind, major, minor = _pattern(rule)
    is_general = kind == "a" or major is None or (kind == "c" and is_known(major, minor))
    return not is_general and not _matching(rule, nodes)


def move(spec: Document, moved: Mapping[Numbers, tuple[int, int]]) -> Document:
    """The specification with the guest's numbers in nodes and rules. Each number is translated only once."""
    linux = dict(spec.get("linux") or {})
    if linux.get("devices"):
        linux["devices"] = [_moved_node(device, moved) for device in linux["devices"]]
    resources = dict(linux.get("resources") or {})
    if resources.get("devices"):
        resources["devices"] = [new for rule in resources["devices"] for new in _moved_rule(rule, moved)]
        linux["resources"] = resources
    return spec | ({"linux": linux} if linux else {})


def _moved_node(device: Document, moved: Mapping[Numbers, tuple[int, int]]) -> Document:
    kind = "b" if device["type"] == "b" else "c"
    if device["type"] == "p":
        return device
    major, minor = device.get("major") or 0, device.get("minor") or 0
    if (kind, major, minor) in moved:
        new = moved[kind, major, minor]
        return {**device, "major": new[0], "minor": new[1]}
    # The container may not open this node. If a device that is passed has the same number in the guest, the node needs
    # a number that no device has.
    taken = any(kind == other[0] and new == (major, minor) for other, new in moved.items())
    return {**device, **_NO_DEVICE} if taken else device


def _moved_rule(rule: Document, moved: Mapping[Numbers, tuple[int, int]]) -> list[Document]:
    kind, major, minor = _pattern(rule)
    if kind == "a" or major is None:
        return [rule]
    new = [{**rule, "major": moved[node][0], "minor": moved[node][1]} for node in _matching(rule, moved)]
    # A rule for all minors of a major also matches devices that are not moved, such as other misc devices: keep it.
    return new if kind == "b" or (new and minor is not None) else [rule, *new]


def _matching(rule: Document, nodes: Collection[Numbers]) -> list[Numbers]:
    kind, major, minor = _pattern(rule)
    return [node for node in nodes if node[0] == kind and node[1] == major and minor in (None, node[2])]


def is_wildcard(number: int | None) -> bool:
    """Whether a number of a rule means all numbers."""
    return number is None or number < 0


def _pattern(rule: Document) -> tuple[str, int | None, int | None]:
    """Kind, major and minor of a rule; the kind "a" and the number None mean any."""
    major, minor = rule.get("major"), rule.get("minor")
    kind = {"b": "b", "c": "c", "u": "c"}.get(rule.get("type") or "a", "a")
    return kind, None if is_wildcard(major) else major, None if is_wildcard(minor) else minor
