"""VFIO nodes and device rules, moved from the host's numbers to the guest's."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hawse.agent.devices.map_file import Node, rewrite_devices

CONTAINER = Node("/dev/vfio/vfio", 10, 196, None, 10, 196)


def spec(paths: list[tuple[str, int, int]], rules: list[dict[str, Any]]) -> dict[str, Any]:
    devices = [
        {"path": path, "type": "c", "major": major, "minor": minor, "fileMode": 0o600, "uid": 1000, "gid": 1000}
        for path, major, minor in paths
    ]
    return {"linux": {"devices": devices, "resources": {"devices": rules}}}


def places(made: dict[str, Any]) -> dict[str, tuple[int, int]]:
    return {device["path"]: (device["major"], device["minor"]) for device in made["linux"]["devices"]}


def test_a_group_stands_at_the_path_asked_for_and_at_the_guests_number() -> None:
    made = spec([("/dev/vfio/45", 511, 3)], [])
    log = rewrite_devices(made, [Node("/dev/vfio/45", 511, 3, 13, 245, 0)])
    assert places(made) == {"/dev/vfio/45": (245, 0), "/dev/vfio/13": (245, 0)}
    assert all((d["fileMode"], d["uid"], d["gid"]) == (0o600, 1000, 1000) for d in made["linux"]["devices"])
    assert log[0][0] == "debug"
    assert "is /dev/vfio/13 in the guest" in log[0][1]


def test_a_path_of_the_spec_may_have_any_name() -> None:
    made = spec([("/dev/accelerator", 511, 3)], [])
    rewrite_devices(made, [Node("/dev/accelerator", 511, 3, 13, 245, 0)])
    assert places(made) == {"/dev/accelerator": (245, 0), "/dev/vfio/13": (245, 0)}


def test_numbers_that_change_places_do_not_chain() -> None:
    made = spec(
        [("/dev/vfio/5", 245, 5), ("/dev/vfio/8", 245, 8)],
        [
            {"allow": True, "type": "c", "major": 245, "minor": 5, "access": "rw"},
            {"allow": True, "type": "c", "major": 245, "minor": 8, "access": "r"},
        ],
    )
    log = rewrite_devices(made, [Node("/dev/vfio/5", 245, 5, 8, 245, 8), Node("/dev/vfio/8", 245, 8, 5, 245, 5)])
    assert places(made) == {"/dev/vfio/8": (245, 8), "/dev/vfio/5": (245, 5)}
    assert [(rule["minor"], rule["access"]) for rule in made["linux"]["resources"]["devices"]] == [(8, "rw"), (5, "r")]
    assert len(log) == 2


def test_the_guests_number_wins_where_a_path_is_anothers() -> None:
    made = spec([("/dev/vfio/5", 511, 0), ("/dev/vfio/6", 511, 1)], [])
    log = rewrite_devices(made, [Node("/dev/vfio/5", 511, 0, 6, 245, 0), Node("/dev/vfio/6", 511, 1, 7, 245, 1)])
    assert places(made) == {"/dev/vfio/5": (245, 0), "/dev/vfio/6": (245, 0), "/dev/vfio/7": (245, 1)}
    assert any(level == "warning" and "another group's number" in text for level, text in log)


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
    made = spec([], [{"allow": False, "access": "rwm"}, *rules])
    rewrite_devices(made, [CONTAINER])
    after = made["linux"]["resources"]["devices"]
    assert {access for access in "rwm" if allowed(after, 10, 196, access)} == opened


def test_rule_for_all_groups_is_one_for_all_groups_of_the_guest() -> None:
    made = spec([("/dev/vfio/5", 511, 0)], [{"allow": True, "type": "c", "major": 511, "access": "rw"}])
    rewrite_devices(made, [Node("/dev/vfio/5", 511, 0, 8, 245, 0)])
    assert made["linux"]["resources"]["devices"] == [
        {"allow": True, "type": "c", "major": 245, "access": "rw"},
        {"allow": True, "type": "c", "major": 245, "minor": 0, "access": "rw"},
    ]


FILES = [("/dev/iommu", 10, 126), ("/dev/vfio/devices/vfio3", 510, 3), ("/dev/vfio/devices/vfio4", 510, 4)]
FILE_RULES = [
    {"allow": True, "type": "c", "major": 510, "access": "rw"},
    {"allow": True, "type": "c", "major": 510, "minor": 3, "access": "rw"},
    {"allow": True, "type": "c", "major": 10, "minor": 126, "access": "rw"},
]


def test_device_files_stand_where_the_guest_has_them_and_where_they_were_asked_for() -> None:
    made = spec(FILES, list(FILE_RULES))
    log = rewrite_devices(
        made,
        [
            Node("/dev/iommu", 10, 126, None, 10, 125, "/dev/iommu"),
            Node("/dev/vfio/devices/vfio3", 510, 3, 9, 244, 0, "/dev/vfio/devices/vfio0"),
            Node("/dev/vfio/devices/vfio4", 510, 4, 8, 244, 3, "/dev/vfio/devices/vfio3"),
        ],
    )
    assert places(made) == {
        "/dev/iommu": (10, 125), "/dev/vfio/devices/vfio0": (244, 0),
        "/dev/vfio/devices/vfio3": (244, 3), "/dev/vfio/devices/vfio4": (244, 3),
    }  # fmt: skip
    assert [
        (rule["major"], rule.get("minor")) for rule in made["linux"]["resources"]["devices"] if rule["major"] == 244
    ] == [(244, None), (244, 0), (244, 0), (244, 3)]
    assert {"allow": True, "type": "c", "major": 10, "minor": 125, "access": "rw"} in made["linux"]["resources"][
        "devices"
    ]
    assert [text for level, text in log if level == "warning"] == [
        "/dev/vfio/devices/vfio3 is another device's number in the guest: "
        "the node asked for is at /dev/vfio/devices/vfio0 alone"
    ]


def test_device_files_that_the_guest_has_not_are_left_out_with_what_allowed_them() -> None:
    made = spec([*FILES[:2], ("/dev/vfio/12", 511, 0)], list(FILE_RULES))
    log = rewrite_devices(
        made,
        [
            Node("/dev/vfio/12", 511, 0, 9, 245, 0),
            Node("/dev/iommu", 10, 126, None, None, None, "/dev/iommu"),
            Node("/dev/vfio/devices/vfio3", 510, 3, 9, None, None, "/dev/vfio/devices/vfio3"),
        ],
    )
    assert places(made) == {"/dev/vfio/12": (245, 0), "/dev/vfio/9": (245, 0)}
    assert made["linux"]["resources"]["devices"] == []
    assert [text for level, text in log if level == "warning"] == [
        "/dev/iommu: the guest's kernel has no device files of VFIO: /dev/vfio/vfio is in its place",
        "/dev/vfio/devices/vfio3: the guest's kernel has no device files of VFIO: /dev/vfio/9 is in its place",
    ]


def test_devices_and_rules_that_are_not_vfios_stay() -> None:
    rules = [{"allow": False, "access": "rwm"}, {"allow": True, "type": "b", "major": 511, "minor": 0, "access": "r"}]
    made = spec([("/dev/fuse", 10, 229), ("/dev/vfio/5", 511, 0)], list(rules))
    rewrite_devices(made, [Node("/dev/vfio/5", 511, 0, 8, 245, 0)])
    assert places(made)["/dev/fuse"] == (10, 229)
    deny = {"allow": False, "type": "c", "major": 245, "minor": 0, "access": "rwm"}
    assert made["linux"]["resources"]["devices"] == [*rules, deny]


def test_a_spec_without_vfio_is_left_alone() -> None:
    made: dict[str, Any] = {"process": {}}
    assert rewrite_devices(made, []) == []
    assert made == {"process": {}}


def allowed(rules: list[dict[str, Any]], major: int, minor: int, access: str) -> bool:
    """The device cgroup: the last rule that matches decides."""
    verdict = True
    for rule in rules:
        kind, wanted = rule.get("type", "a"), rule.get("access", "")
        everything = kind == "a"
        hits = rule.get("major") in (None, -1, major) and rule.get("minor") in (None, -1, minor)
        if everything or (kind == "c" and hits and access in wanted):
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
def test_who_was_allowed_on_the_host_is_allowed_in_the_guest(
    permutation: list[int], count: int, rules: list[dict[str, Any]]
) -> None:
    """Any permutation of the numbers keeps every group's verdict."""
    rules = [{"allow": False, "access": "rwm"}, *rules]
    nodes = [Node(f"/dev/vfio/{n}", 245, n, permutation[n], 245, permutation[n]) for n in range(count)]
    made = spec([(node.path, *node.host) for node in nodes], [dict(rule) for rule in rules])
    rewrite_devices(made, nodes)
    after = made["linux"]["resources"]["devices"]
    for node in nodes:
        for access in "rwm":
            assert node.numbers is not None
            assert allowed(after, *node.numbers, access) == allowed(rules, *node.host, access)
