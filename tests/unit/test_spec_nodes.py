"""VFIO nodes and device rules of a specification, translated from the host's numbers to the guest's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hawse.monitor.agent.answers import BoundFunction, DeviceFile, DeviceNumbers
from hawse.monitor.devices.guest_nodes import locate
from hawse.monitor.devices.spec_nodes import with_guest_nodes
from hawse.notes import Note
from hawse.plan.model import PlugStep
from hawse.vfio.node import VfioNode, container_node, file_node, group_node


def spec(paths: list[tuple[str, int, int]], rules: list[dict[str, Any]]) -> dict[str, Any]:
    devices = [
        {"path": path, "type": "c", "major": major, "minor": minor, "fileMode": 0o600, "uid": 1000, "gid": 1000}
        for path, major, minor in paths
    ]
    return {"linux": {"devices": devices, "resources": {"devices": rules}}}


PLUG = PlugStep(
    group=1, label="edu", host="", note="", commands=[], device="", bus="port0", guest_address="0000:02:00.0"
)


def places(specification: dict[str, Any]) -> dict[str, tuple[int, int]]:
    return {device["path"]: (device["major"], device["minor"]) for device in specification["linux"]["devices"]}


def group(path: str, host: tuple[int, int], number: int, guest: tuple[int, int]) -> VfioNode:
    """The node of a group: its number and the device numbers of its node in the guest."""
    function = BoundFunction(group=number, major=guest[0], minor=guest[1], bars=[])
    [node] = locate([group_node(1, path=path, major=host[0], minor=host[1])], [PLUG], [function])
    return node


def file(path: str, host: tuple[int, int], number: int | None, guest: DeviceFile | None) -> VfioNode:
    """The device file of a function, or /dev/iommu for the group None. ``guest`` is None if the guest has no device
    files."""
    node = file_node(None if number is None else 1, path=path, major=host[0], minor=host[1])
    iommu = DeviceNumbers(guest.major, guest.minor) if guest else None
    function = BoundFunction(group=number or 0, major=245, minor=0, bars=[], file=guest, iommu=iommu)
    [located] = locate([node], [PLUG], [function])
    return located


def moved(
    before: dict[str, Any], nodes: Sequence[VfioNode], named: Mapping[tuple[int, int], tuple[int, int]] | None = None
) -> tuple[dict[str, Any], list[Note]]:
    """The guest's specification and the notes; the host's specification must not change."""
    copy = deepcopy(before)
    specification = with_guest_nodes(before, nodes, named or {})
    assert before == copy, "the plan is not changed"
    return specification


def test_group_has_its_requested_path_and_the_path_of_its_number_in_the_guest() -> None:
    specification = spec([("/dev/vfio/45", 511, 3)], [])
    specification, notes = moved(specification, [group("/dev/vfio/45", (511, 3), 13, (245, 0))])
    assert places(specification) == {"/dev/vfio/45": (245, 0), "/dev/vfio/13": (245, 0)}
    assert all((d["fileMode"], d["uid"], d["gid"]) == (0o600, 1000, 1000) for d in specification["linux"]["devices"])
    assert notes == [("debug", "/dev/vfio/45 is /dev/vfio/13 in the guest: both paths exist")]


def test_path_of_the_specification_may_have_any_name() -> None:
    specification = spec([("/dev/accelerator", 511, 3)], [])
    specification, _ = moved(specification, [group("/dev/accelerator", (511, 3), 13, (245, 0))])
    assert places(specification) == {"/dev/accelerator": (245, 0), "/dev/vfio/13": (245, 0)}


def test_swapped_numbers_are_translated_only_once() -> None:
    specification = spec(
        [("/dev/vfio/5", 245, 5), ("/dev/vfio/8", 245, 8)],
        [
            {"allow": True, "type": "c", "major": 245, "minor": 5, "access": "rw"},
            {"allow": True, "type": "c", "major": 245, "minor": 8, "access": "r"},
        ],
    )
    specification, notes = moved(
        specification, [group("/dev/vfio/5", (245, 5), 8, (245, 8)), group("/dev/vfio/8", (245, 8), 5, (245, 5))]
    )
    assert places(specification) == {"/dev/vfio/8": (245, 8), "/dev/vfio/5": (245, 5)}
    assert [(rule["minor"], rule["access"]) for rule in specification["linux"]["resources"]["devices"]] == [
        (8, "rw"),
        (5, "r"),
    ]
    assert [note.level for note in notes] == ["warning", "warning"]


def test_number_in_the_guest_takes_precedence_over_a_requested_path() -> None:
    specification = spec([("/dev/vfio/5", 511, 0), ("/dev/vfio/6", 511, 1)], [])
    specification, notes = moved(
        specification, [group("/dev/vfio/5", (511, 0), 6, (245, 0)), group("/dev/vfio/6", (511, 1), 7, (245, 1))]
    )
    assert places(specification) == {"/dev/vfio/5": (245, 0), "/dev/vfio/6": (245, 0), "/dev/vfio/7": (245, 1)}
    assert notes == [
        ("debug", "/dev/vfio/5 is /dev/vfio/6 in the guest: both paths exist"),
        ("warning", "/dev/vfio/6 is the path of another group in the guest: this node is at /dev/vfio/7 only"),
    ]


def test_warning_names_the_kind_of_the_node_that_has_the_path() -> None:
    """A specification may ask for a device file at the path that a group has in the guest."""
    nodes = [
        file("/dev/vfio/7", (510, 3), 9, DeviceFile(0, 244, 0)),
        group("/dev/vfio/5", (511, 0), 7, (245, 0)),
    ]
    specification, notes = moved(spec([("/dev/vfio/7", 510, 3), ("/dev/vfio/5", 511, 0)], []), nodes)
    assert places(specification) == {
        "/dev/vfio/devices/vfio0": (244, 0),
        "/dev/vfio/5": (245, 0),
        "/dev/vfio/7": (245, 0),
    }
    assert [note.text for note in notes if note.level == "warning"] == [
        "/dev/vfio/7 is the path of another group in the guest: this node is at /dev/vfio/devices/vfio0 only"
    ]


@pytest.mark.parametrize(
    ("rules", "opened"),
    [
        ([], set()),
        ([{"allow": True, "type": "c", "major": 10, "minor": 196, "access": "r"}], {"r"}),
        ([{"allow": True, "type": "c", "major": 10, "minor": 196, "access": "rwm"}], set("rwm")),
        ([{"allow": True, "type": "c", "major": 10, "access": "rw"}], set("rw")),
    ],
)
def test_vfio_container_node_is_allowed_what_the_rules_allow(rules: list[dict[str, Any]], opened: set[str]) -> None:
    specification = spec([], [{"allow": False, "access": "rwm"}, *rules])
    specification, _ = moved(specification, locate([container_node()], [], []))
    after = specification["linux"]["resources"]["devices"]
    assert {access for access in "rwm" if allowed(after, 10, 196, access)} == opened


def test_rule_for_all_groups_applies_to_all_groups_of_the_guest() -> None:
    specification = spec([("/dev/vfio/5", 511, 0)], [{"allow": True, "type": "c", "major": 511, "access": "rw"}])
    specification, _ = moved(specification, [group("/dev/vfio/5", (511, 0), 8, (245, 0))])
    assert specification["linux"]["resources"]["devices"] == [
        {"allow": True, "type": "c", "major": 245, "access": "rw"},
        {"allow": True, "type": "c", "major": 245, "minor": 0, "access": "rw"},
    ]


FILES = [("/dev/iommu", 10, 126), ("/dev/vfio/devices/vfio3", 510, 3), ("/dev/vfio/devices/vfio4", 510, 4)]
FILE_RULES = [
    {"allow": True, "type": "c", "major": 510, "access": "rw"},
    {"allow": True, "type": "c", "major": 510, "minor": 3, "access": "rw"},
    {"allow": True, "type": "c", "major": 10, "minor": 126, "access": "rw"},
]


def test_device_files_have_the_paths_of_the_guest_and_the_requested_paths() -> None:
    specification = spec(FILES, list(FILE_RULES))
    specification, notes = moved(
        specification,
        [
            file("/dev/iommu", (10, 126), None, DeviceFile(0, 10, 125)),
            file("/dev/vfio/devices/vfio3", (510, 3), 9, DeviceFile(0, 244, 0)),
            file("/dev/vfio/devices/vfio4", (510, 4), 8, DeviceFile(3, 244, 3)),
        ],
    )
    assert places(specification) == {
        "/dev/iommu": (10, 125), "/dev/vfio/devices/vfio0": (244, 0),
        "/dev/vfio/devices/vfio3": (244, 3), "/dev/vfio/devices/vfio4": (244, 3),
    }  # fmt: skip
    assert [
        (rule["major"], rule.get("minor"))
        for rule in specification["linux"]["resources"]["devices"]
        if rule["major"] == 244
    ] == [(244, None), (244, 0), (244, 0), (244, 3)]
    assert {"allow": True, "type": "c", "major": 10, "minor": 125, "access": "rw"} in specification["linux"][
        "resources"
    ]["devices"]
    assert [note.text for note in notes if note.level == "warning"] == [
        "/dev/vfio/devices/vfio3 is the path of another device file in the guest: "
        "this node is at /dev/vfio/devices/vfio0 only"
    ]


def test_device_files_that_the_guest_lacks_are_removed_with_their_rules() -> None:
    specification = spec([*FILES[:2], ("/dev/vfio/12", 511, 0)], list(FILE_RULES))
    specification, notes = moved(
        specification,
        [
            group("/dev/vfio/12", (511, 0), 9, (245, 0)),
            file("/dev/iommu", (10, 126), None, None),
            file("/dev/vfio/devices/vfio3", (510, 3), 9, None),
        ],
    )
    assert places(specification) == {"/dev/vfio/12": (245, 0), "/dev/vfio/9": (245, 0)}
    assert specification["linux"]["resources"]["devices"] == []
    assert [note.text for note in notes if note.level == "warning"] == [
        "/dev/iommu: the guest's kernel has no VFIO device files: use /dev/vfio/vfio instead",
        "/dev/vfio/devices/vfio3: the guest's kernel has no VFIO device files: use /dev/vfio/9 instead",
    ]


def test_other_devices_and_rules_are_kept() -> None:
    rules = [{"allow": False, "access": "rwm"}, {"allow": True, "type": "b", "major": 511, "minor": 0, "access": "r"}]
    specification = spec([("/dev/fuse", 10, 229), ("/dev/vfio/5", 511, 0)], list(rules))
    specification, _ = moved(specification, [group("/dev/vfio/5", (511, 0), 8, (245, 0))])
    assert places(specification)["/dev/fuse"] == (10, 229)
    deny = {"allow": False, "type": "c", "major": 245, "minor": 0, "access": "rwm"}
    assert specification["linux"]["resources"]["devices"] == [*rules, deny]


def test_specification_without_vfio_is_unchanged() -> None:
    assert moved({"process": {}}, []) == ({"process": {}}, [])
    others = spec([("/dev/fuse", 10, 229)], [{"allow": True, "type": "c", "major": 10, "access": "rw"}])
    assert moved(others, []) == (others, [])


def test_node_without_an_entry_changes_only_rules() -> None:
    specification, notes = moved({"linux": None}, locate([container_node()], [], []))
    assert (specification, notes) == ({"linux": None}, [])


def test_misc_devices_are_translated_together_with_vfio_and_only_once() -> None:
    """In the guest, userfaultfd may use the number that /dev/iommu has on the host."""
    rules = [{"allow": True, "type": "c", "major": 10, "minor": minor, "access": "rw"} for minor in (126, 122)]
    before = spec([("/dev/userfaultfd", 10, 126), ("/dev/iommu", 10, 122)], rules)
    iommu = file("/dev/iommu", (10, 122), None, DeviceFile(0, 10, 123))
    specification, notes = moved(before, [iommu], {(10, 126): (10, 122)})
    assert places(specification) == {"/dev/userfaultfd": (10, 122), "/dev/iommu": (10, 123)}
    assert sorted(rule["minor"] for rule in specification["linux"]["resources"]["devices"]) == [122, 123]
    assert notes == []


def test_misc_devices_are_translated_without_vfio() -> None:
    """They are found by their numbers, at any path and in each entry. Only rules for an existing node allow
    anything."""
    rules = [{"allow": False, "access": "rwm"}, {"allow": True, "type": "c", "major": 10, "minor": 126, "access": "r"}]
    before = spec([("/dev/userfaultfd", 10, 126), ("/dev/other", 10, 126), ("/dev/fuse", 10, 229)], rules)
    before["linux"]["devices"][1]["type"] = "u"
    before["linux"]["devices"].append({"path": "/dev/disk", "type": "b", "major": 10, "minor": 126})
    before["linux"]["devices"].append({"path": "/dev/pipe", "type": "p"})
    specification, notes = moved(before, [], {(10, 126): (10, 60), (10, 99): (10, 61)})
    assert [(each.get("major"), each.get("minor")) for each in specification["linux"]["devices"]] == [
        (10, 60), (10, 60), (10, 229), (10, 126), (None, None),
    ]  # fmt: skip
    here = {"type": "c", "major": 10, "minor": 60}
    assert specification["linux"]["resources"]["devices"] == [
        {"allow": False, "access": "rwm"},
        {"allow": False, "access": "rwm", **here},
        {"allow": True, "access": "r", **here},
    ]
    assert notes == []


def allowed(rules: list[dict[str, Any]], major: int, minor: int, access: str) -> bool:
    """The device cgroup: the last rule that matches decides."""
    verdict = True
    for rule in rules:
        kind, requested = rule.get("type", "a"), rule.get("access", "")
        everything = kind == "a"
        hits = rule.get("major") in (None, -1, major) and rule.get("minor") in (None, -1, minor)
        if everything or (kind == "c" and hits and access in requested):
            verdict = rule["allow"]
    return verdict


numbers = st.tuples(st.just(245), st.integers(0, 6))
rule_lists = st.lists(
    st.fixed_dictionaries(
        {"allow": st.booleans(), "type": st.just("c"), "major": st.just(245), "minor": st.integers(0, 6),
         "access": st.sampled_from(("r", "rw", "rwm"))}
    ),
    max_size=8,
)  # fmt: skip


@given(st.permutations(range(7)), st.integers(1, 7), rule_lists)
def test_access_allowed_on_the_host_is_allowed_in_the_guest(
    permutation: list[int], count: int, rules: list[dict[str, Any]]
) -> None:
    """Any permutation of the numbers preserves the verdict for every group."""
    rules = [{"allow": False, "access": "rwm"}, *rules]
    nodes = [group(f"/dev/vfio/{n}", (245, n), permutation[n], (245, permutation[n])) for n in range(count)]
    specification, _ = moved(spec([(node.path, *node.host_numbers) for node in nodes], rules), nodes)
    after = specification["linux"]["resources"]["devices"]
    for node in nodes:
        for access in "rwm":
            assert node.guest_numbers is not None
            assert allowed(after, *node.guest_numbers, access) == allowed(rules, *node.host_numbers, access)
