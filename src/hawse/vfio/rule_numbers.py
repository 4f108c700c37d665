"""Translate device rules from the host's numbers of VFIO nodes to the guest's. Pure, standard library only.

The last rule that matches a device decides (:mod:`hawse.oci.device_rules`).
"""

from __future__ import annotations

from collections.abc import Sequence

TYPE_CHECKING = False  # importing typing takes a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from hawse.json_text import Document

    Numbers = tuple[int, int]
    Rule = Document

#: Majors of character devices that Linux assigns dynamically, such as VFIO's (include/linux/fs.h, CHRDEV_MAJOR_DYN_*).
_DYNAMIC = (range(234, 255), range(384, 512))


def of_node(rules: Sequence[Rule], host: Numbers, guest: Numbers) -> list[Rule]:
    """The rules that match the character device ``host``, in the same order, rewritten for the number ``guest``."""
    return [
        {"allow": rule["allow"], "type": "c", "major": guest[0], "minor": guest[1], "access": rule.get("access") or ""}
        for rule in rules
        if _matches(rule, host)
    ]


def translate(rules: Sequence[Rule], moves: Sequence[tuple[Numbers, Numbers | None]]) -> list[Rule]:
    """The rules for a guest. Each move is a node's number on the host and in the guest, None if the guest lacks it.

    A rule for all minors of a VFIO major of the host becomes a rule for the guest's major. These rules have no meaning
    in the guest and are removed: rules for other groups of the host, and rules for numbers that belong to VFIO only in
    the guest.
    """
    majors: dict[int, list[int]] = {}
    for host, guest in moves:
        if is_dynamic(host[0]):
            known = majors.setdefault(host[0], [])
            if guest is not None and guest[0] not in known:
                known.append(guest[0])
    named = {host for host, _ in moves} | {guest for _, guest in moves if guest is not None}
    in_guest = {guest[0] for _, guest in moves if guest is not None and is_dynamic(guest[0])}
    translated: list[Rule] = []
    for rule in rules:
        major, minor = _number(rule, "major"), _number(rule, "minor")
        if rule.get("type") != "c" or major is None:
            translated.append(rule)
        elif major in majors and minor is None:
            translated += [rule | {"major": guest_major} for guest_major in majors[major]]
        elif major not in majors and major not in in_guest and (major, minor) not in named:
            translated.append(rule)
    # Every move is applied to the original rules. Otherwise a rule would be moved twice if one node's number in the
    # guest is another node's number on the host.
    for host, guest in dict.fromkeys(moves):
        if guest is not None:
            translated += of_node(rules, host, guest)
    return translated


def is_dynamic(major: int) -> bool:
    """Whether Linux assigns this major of character devices dynamically."""
    return any(major in majors for majors in _DYNAMIC)


def _matches(rule: Rule, numbers: Numbers) -> bool:
    kind = rule.get("type") or "a"
    pattern = (_number(rule, "major"), _number(rule, "minor"))
    return kind == "a" or (kind == "c" and all(a in (None, b) for a, b in zip(pattern, numbers, strict=True)))


def _number(rule: Rule, key: str) -> int | None:
    """A number of a rule, None if the rule is for all numbers."""
    number = rule.get(key)
    return None if number is None or number < 0 else int(number)
