"""linux.resources.devices as runc applies it; the expected verdicts were obtained from runc 1.1.5 on cgroup v1."""

from __future__ import annotations

from typing import Any

import pytest

from hawse.errors import ConfigError
from hawse.oci.device_rules import effective
from hawse.oci.types import DeviceRule
from tests.support.oci import verdict

NONE, ALL = DeviceRule(allow=False, access="rwm"), DeviceRule(allow=True, access="rwm")


def rule(allow: bool, major: int | None = None, minor: int | None = None, access: str = "rwm") -> DeviceRule:
    return DeviceRule(allow=allow, type="c", major=major, minor=minor, access=access)


@pytest.mark.parametrize(
    ("rules", "opened"),
    [
        ([], ""),
        ([NONE], ""),
        ([ALL], "r w rw"),
        ([NONE, rule(True, 1, 11)], "r w rw"),
        ([ALL, rule(False, 1, 11, "w")], "r"),
        ([ALL, rule(False, 1, 11, "rw"), rule(True, 1, None, "r")], ""),
        ([NONE, rule(True, 1, 11, "r"), rule(True, 1, 11, "w")], "r w rw"),
        ([NONE, rule(True, 1, None, "r"), rule(True, 1, 11, "w")], "r w"),
        ([NONE, rule(True, 1, 11, "rw"), rule(False, 1, None, "w")], "r w rw"),
        ([NONE, rule(True, 1, 11, "rw"), rule(False, 1, 11, "w")], "r"),
        ([NONE, rule(True, None, 11, "rw")], "r w rw"),
        ([NONE, rule(True, 1, 11, "rwmx")], "r w rw"),
        ([NONE, rule(True, -1, -1, "rw")], "r w rw"),
        ([NONE, rule(True, 1, 11), DeviceRule(allow=True, access="r")], "r w rw"),
        ([DeviceRule(allow=True, major=1, minor=12, access="r")], "r w rw"),
        ([rule(True, 1, 11, "rw"), NONE], ""),
        ([ALL, rule(False, None, None, "m")], "r w rw"),
    ],
)
def test_open_is_allowed_as_with_runc(rules: list[DeviceRule], opened: str) -> None:
    translated = effective("config.json", rules)
    assert " ".join(access for access in ("r", "w", "rw") if verdict(translated, (1, 11), access)) == opened


@pytest.mark.parametrize(
    "rules", [[], [NONE], [ALL], [ALL, rule(False, 1, 3)], [ALL, rule(False, 1, 3, "r")], [NONE, rule(False, 1, 3)]]
)
def test_default_devices_are_allowed_whatever_the_rules(rules: list[DeviceRule]) -> None:
    translated = effective("config.json", rules)
    for numbers in ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2), (136, 4)):
        assert verdict(translated, numbers, "rwm"), numbers
    assert verdict(translated, (77, 1), "m")


def test_denials_that_overlap_add_up() -> None:
    """Also if neither contains the other: c 511:* and c *:7 have c 511:7 in common."""
    translated = effective(
        "config.json",
        [ALL, rule(False, 511, None, "w"), rule(False, None, 77, "r"), rule(False, 511, 8, "m")],
    )
    opened = {
        numbers: "".join(access for access in "rwm" if verdict(translated, numbers, access))
        for numbers in ((511, 77), (511, 8), (511, 1), (200, 77), (200, 1))
    }
    assert opened == {(511, 77): "m", (511, 8): "r", (511, 1): "rm", (200, 77): "wm", (200, 1): "rwm"}


def test_rules_are_translated_for_crun() -> None:
    translated: list[dict[str, Any]] = effective("config.json", [NONE, rule(True, 511, None, "wr")])
    assert translated[0] == {"allow": False, "type": "a", "access": "rwm"}
    assert translated[1] == {"allow": True, "type": "c", "major": 511, "access": "rw"}
    assert {"allow": True, "type": "b", "access": "m"} in translated


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([rule(True, 1, 11, "")], r"devices\[0\]\.access: '' has none of r, w, m"),
        ([NONE, rule(True, 1, 11, "x")], r"devices\[1\]\.access: 'x' has none"),
        ([DeviceRule(allow=True, type="u", access="r")], r"devices\[0\]\.type: 'u' is not a, b or c"),
        ([rule(True, -2, 11)], r"devices\[0\]\.major: -2 is not a device number"),
        ([rule(True, 1, -3)], r"devices\[0\]\.minor: -3 is not a device number"),
        ([NONE, rule(True, 1, None, "rw"), rule(False, 1, 11, "w")],
         r"devices\[2\]: an earlier rule allows c 1:\* rw, and c 1:11 w would deny part of it again"),
        ([ALL, rule(False, 511, None, "w"), rule(True, 511, 8, "w")],
         r"devices\[2\]: an earlier rule denies c 511:\* w, and c 511:8 w would allow part of it again"),
        ([ALL, rule(False)],
         r"devices: an earlier rule denies c \*:\* rw, and c 1:3 rwm would allow a device that every container has"),
        ([ALL, rule(False, 1, None, "r")], r"devices: an earlier rule denies c 1:\* r, and c 1:3 rwm"),
    ],
)  # fmt: skip
def test_rules_that_runc_refuses_are_refused(rules: list[DeviceRule], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        effective("config.json", rules)
    assert caught.value.hint
