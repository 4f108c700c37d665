"""Device rules, translated from the host's numbers of VFIO nodes to the guest's."""

from __future__ import annotations

from typing import Any

import pytest

from hawse.vfio.rule_numbers import of_node, translate
from tests.support.oci import verdict

DENY = {"allow": False, "type": "a", "access": "rwm"}
#: A group, the VFIO container, /dev/iommu, a device file, and a device file that the guest lacks.
MOVES = [
    ((511, 1), (245, 0)), ((10, 196), (10, 196)), ((10, 126), (10, 125)), ((510, 3), (244, 7)), ((510, 4), None),
]  # fmt: skip


def rule(allow: bool, major: int | None = None, minor: int | None = None, access: str = "rw", kind: str = "c") -> Any:
    numbers = {key: number for key, number in (("major", major), ("minor", minor)) if number is not None}
    return {"allow": allow, "type": kind, **numbers, "access": access}


@pytest.mark.parametrize(
    "rules",
    [
        [],
        [DENY],
        [DENY, rule(True, 511, 1)],
        [DENY, rule(True, 511, 1, "r"), rule(True, 511, 1, "w")],
        [DENY, rule(True, 511), rule(False, 511, 1, "w")],
        [DENY, rule(True, 511, 1, "rwm"), rule(False, 511)],
        [DENY, rule(True, minor=1)],
        [DENY, rule(True, access="m"), rule(True, 511, -1, "r")],
        [DENY, rule(True, 510, 3, "rw"), rule(True, 10, 126, "r"), rule(True, 10, 196, "rwm")],
        [DENY, rule(True, 10)],
        [{**DENY, "allow": True}, rule(False, 511, 1, "rwm"), rule(True, 511, 1, "rm")],
        [{**DENY, "allow": True}, rule(False, 10, 196, "rwm"), rule(False, 510, 3, "w")],
        [rule(True, 511, 1), DENY],
    ],
)
def test_access_to_a_node_is_decided_in_the_guest_as_on_the_host(rules: list[dict[str, Any]]) -> None:
    translated = translate(rules, MOVES)
    for host, guest in MOVES:
        for access in ("r", "w", "m", "rw", "rm", "wm", "rwm") if guest else ():
            assert guest is not None
            assert verdict(translated, guest, access) == verdict(rules, host, access), (host, access)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (rule(True, 511), [rule(True, 245)]),
        (rule(True, 510, -1), [rule(True, 244, -1) | {"minor": -1}]),
        (rule(True, 511, 9), []),  # another group of the host
        (rule(True, 245, 0), []),  # another driver of the host, whose number belongs to VFIO in the guest
        (rule(True, 244), []),
        (rule(True, 10, 125), []),
        (rule(True, 510, 4), []),
        (rule(True, 10, 229), [rule(True, 10, 229)]),
        (rule(True, 10), [rule(True, 10)]),
        (rule(True), [rule(True)]),
        (rule(True, minor=5), [rule(True, minor=5)]),
        (rule(True, 511, 1, kind="b"), [rule(True, 511, 1, kind="b")]),
        (DENY, [DENY]),
    ],
)
def test_rules_for_other_devices(before: dict[str, Any], after: list[dict[str, Any]]) -> None:
    own = [one for host, guest in MOVES if guest for one in of_node([before], host, guest)]
    assert translate([before], MOVES) == [*after, *own]


def test_rules_for_other_majors_are_kept() -> None:
    """The node of an emulated group may be any device on the host, such as /dev/null."""
    rules = [DENY, rule(True, 1, 11), rule(True, 1, 3)]
    assert translate(rules, [((1, 3), (245, 0))])[:2] == rules[:2]


def test_rule_without_a_type_matches_every_device() -> None:
    assert of_node([{"allow": True, "access": "rwm"}], (1, 2), (3, 4)) == [rule(True, 3, 4, "rwm")]
