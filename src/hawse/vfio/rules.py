"""Rules for devices, moved from the host's numbers of VFIO nodes to the guest's. Pure, standard library only.

Of rules the last one that matches decides (:mod:`hawse.oci.device_rules`).
"""

from __future__ import annotations

from collections.abc import Sequence

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from typing import Any

    Numbers = tuple[int, int]
    Rule = dict[str, Any]

#: Majors of character devices that Linux gives out itself, as it does VFIO's (include/linux/fs.h, CHRDEV_MAJOR_DYN_*).
_DYNAMIC = (range(234, 255), range(384, 512))


def of_node(rules: Sequence[Rule], host: Numbers, guest: Numbers) -> list[Rule]:
    """What the rules say of a character device, as rules for it by other numbers, in the same order."""
    return [
        {"allow": rule["allow"], "type": "c", "major": guest[0], "minor": guest[1], "access": rule.get("access") or ""}
        for rule in rules
        if _matches(rule, host)
    ]


def translate(rules: Sequence[Rule], moves: Sequence[tuple[Numbers, Numbers | None]]) -> list[Rule]:
    """The rules for a guest; a move is what a node's numbers on the host are in it, None for a node that it has not.

    A rule for every number of a major of VFIO's is one for the guest's major. A rule for another group of the host, or
    for numbers that are VFIO's in the guest alone, has no meaning in it and is left out.
    """
    majors: dict[int, list[int]] = {}
    for host, guest in moves:
        if is_dynamic(host[0]):
            known = majors.setdefault(host[0], [])
            if guest is not None and guest[0] not in known:
                known.append(guest[0])
    named = {host for host, _ in moves} | {guest for _, guest in moves if guest is not None}
    in_guest = {guest[0] for _, guest in moves if guest is not None and is_dynamic(guest[0])}
    made: list[Rule] = []
    for rule in rules:
        major, minor = _number(rule, "major"), _number(rule, "minor")
        if rule.get("type") != "c" or major is None:
            made.append(rule)
        elif major in majors and minor is None:
            made += [rule | {"major": moved} for moved in majors[major]]
        elif major not in majors and major not in in_guest and (major, minor) not in named:
            made.append(rule)
    # Each host's rules are looked at as they were, so that numbers which change places do not chain.
    for host, guest in dict.fromkeys(moves):
        if guest is not None:
            made += of_node(rules, host, guest)
    return made


def is_dynamic(major: int) -> bool:
    """Whether a major of character devices is one that Linux gives out itself."""
    return any(major in majors for majors in _DYNAMIC)


def _matches(rule: Rule, numbers: Numbers) -> bool:
    kind = rule.get("type") or "a"
    wanted = (_number(rule, "major"), _number(rule, "minor"))
    return kind == "a" or (kind == "c" and all(a in (None, b) for a, b in zip(wanted, numbers, strict=True)))


def _number(rule: Rule, key: str) -> int | None:
    """None for every number."""
    number = rule.get(key)
    return None if number is None or number < 0 else int(number)
