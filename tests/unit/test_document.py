"""Copies of a specification's document with other content: what each function changes, and that its input stays."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from hawse.oci.document import (
    devices_of,
    is_bind,
    linux_of,
    process_of,
    rules_of,
    with_devices,
    with_linux,
    with_process,
)

NULL, FUSE = {"path": "/dev/null", "type": "c"}, {"path": "/dev/fuse", "type": "c"}
DENY, ALLOW = {"allow": False, "access": "rwm"}, {"allow": True, "access": "r"}
FULL: dict[str, Any] = {
    "process": {"args": ["a"], "env": ["A=1"], "apparmorProfile": None},
    "linux": {
        "devices": [NULL], "resources": {"devices": [DENY], "pids": {"limit": 5}}, "sysctl": {"a": "b"},
        "seccomp": None,
    },
    "mounts": [],
}  # fmt: skip


@pytest.mark.parametrize("spec", [{}, {"linux": None}, {"linux": {}}, {"linux": {"devices": None, "resources": None}}])
def test_missing_objects_are_empty(spec: dict[str, Any]) -> None:
    assert {key: value for key, value in linux_of(spec).items() if value is not None} == {}
    assert (devices_of(spec), rules_of(spec)) == ([], [])


def test_present_objects_are_returned() -> None:
    assert linux_of(FULL) is FULL["linux"]
    assert process_of(FULL) is FULL["process"]
    assert (devices_of(FULL), rules_of(FULL)) == ([NULL], [DENY])
    assert rules_of({"linux": {"resources": {"devices": None}}}) == []


@pytest.mark.parametrize(
    ("spec", "fields", "expected"),
    [
        ({}, {"devices": [NULL]}, {"devices": [NULL]}),
        ({"linux": None}, {"sysctl": {}}, {"sysctl": {}}),
        (FULL, {"sysctl": {}}, FULL["linux"] | {"sysctl": {}}),
        (FULL, {"sysctl": None, "uidMappings": None}, {k: v for k, v in FULL["linux"].items() if k != "sysctl"}),
        (FULL, {}, FULL["linux"]),
    ],
)
def test_fields_of_linux_are_replaced_or_removed(
    spec: dict[str, Any], fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    """Only the fields that are named: another one that is null stays null."""
    before = copy.deepcopy(spec)
    assert with_linux(spec, **fields) == spec | {"linux": expected}
    assert spec == before


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"env": ["B=2"]}, {"args": ["a"], "env": ["B=2"], "apparmorProfile": None}),
        ({"env": [], "terminal": False}, {"args": ["a"], "env": [], "terminal": False, "apparmorProfile": None}),
        ({"env": None, "selinuxLabel": None}, {"args": ["a"], "apparmorProfile": None}),
    ],
)
def test_fields_of_the_process_are_replaced_or_removed(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    before = copy.deepcopy(FULL)
    assert with_process(FULL, **fields) == FULL | {"process": expected}
    assert before == FULL


@pytest.mark.parametrize(
    ("spec", "kept"),
    [
        (FULL, {"pids": {"limit": 5}}),
        ({"linux": {"resources": None}}, {}),
        ({"linux": None}, {}),
        ({}, {}),
    ],
)
def test_devices_and_rules_are_replaced(spec: dict[str, Any], kept: dict[str, Any]) -> None:
    before = copy.deepcopy(spec)
    devices, rules = (NULL, FUSE), (DENY, ALLOW)
    changed = with_devices(spec, devices, rules)
    assert (devices_of(changed), rules_of(changed)) == ([NULL, FUSE], [DENY, ALLOW])
    assert changed["linux"]["resources"] == kept | {"devices": [DENY, ALLOW]}
    assert spec == before
    devices_of(changed).append(NULL)
    rules_of(changed).append(ALLOW)
    assert (len(devices), len(rules), spec) == (2, 2, before), "the lists are new"


@pytest.mark.parametrize(
    ("mount", "expected"),
    [
        ({"type": "bind"}, True),
        ({"type": "bind", "options": []}, True),
        ({"type": "none", "options": ["bind"]}, True),
        ({"options": ["ro", "rbind"]}, True),
        ({"type": "tmpfs", "options": ["rbind"]}, True),
        ({"type": "tmpfs", "options": ["rw"]}, False),
        ({"type": "none", "options": None}, False),
        ({}, False),
    ],
)
def test_bind_mount_is_known_by_its_type_or_its_options(mount: dict[str, Any], expected: bool) -> None:
    assert is_bind(mount) is expected
