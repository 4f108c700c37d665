"""The map from functions of the host to the guest's: those of the guest's own drivers, and whose a node is."""

from __future__ import annotations

from hawse.monitor.devices.device_map import mirror, places
from hawse.monitor.devices.guest_drivers import Native
from hawse.plan.model import NodeRequest, PlugStep


def plug(group: int, *, host: str = "0000:3b:00.0", note: str = "") -> PlugStep:
    return PlugStep(
        group=group, label=host or "edu", host=host, note=note, commands=[], device=f"vfio-{group}-0", bus="port0",
        guest_address="0000:02:00.0",
    )  # fmt: skip


def node(path: str, group: int | None, device: str = "") -> NodeRequest:
    return NodeRequest(path=path, major=240, minor=0, group=group, file=bool(device), device=device)


def test_a_function_of_the_guests_own_driver_has_no_group_there() -> None:
    native = Native("nvme", ("eth0",), (("/dev/nvme0", "c", 241, 0), ("/dev/nvme0n1", "b", 259, 0)))
    plugs = [plug(5), plug(7, note="another address")]
    assert mirror(plugs, [], {}, {}, {"vfio-5-0": native, "vfio-7-0": Native("edu")}) == [
        {
            "device": "0000:3b:00.0",
            "host": {"address": "0000:3b:00.0", "group": 5},
            "guest": {"address": "0000:02:00.0", "driver": "nvme"},
            "interfaces": ["eth0"],
            "nodes": ["/dev/nvme0", "/dev/nvme0n1"],
        },
        {
            "device": "0000:3b:00.0",
            "host": {"address": "0000:3b:00.0", "group": 7},
            "guest": {"address": "0000:02:00.0", "driver": "edu"},
            "interfaces": [],
            "nodes": [],
            "note": "another address",
        },
    ]


def test_both_kinds_of_function_are_in_one_map() -> None:
    entries = mirror([plug(5), plug(7)], [], {7: (3, 511, 0)}, {}, {"vfio-5-0": Native("edu")})
    assert [sorted(entry["guest"]) for entry in entries] == [["address", "driver"], ["address", "group"]]
    assert [entry["nodes"] for entry in entries] == [[], ["/dev/vfio/3"]]


def test_a_path_that_is_another_functions_in_the_guest_is_not_this_ones() -> None:
    groups = {5: (7, 511, 0), 7: (5, 511, 1)}
    nodes = [node("/dev/vfio/5", 5), node("/dev/vfio/7", 7), node("/dev/vfio/mine", 5)]
    assert places(plug(5), nodes, groups, {}) == [("/dev/vfio/7", 511, 0), ("/dev/vfio/mine", 511, 0)]
    assert places(plug(7), nodes, groups, {}) == [("/dev/vfio/5", 511, 1)]


def test_a_device_file_is_at_its_path_in_the_guest_and_at_the_one_asked_for() -> None:
    files = {"vfio-5-0": ("/dev/vfio/devices/vfio0", 244, 0), "vfio-7-0": ("/dev/vfio/devices/vfio1", 244, 1)}
    groups = {5: (3, 511, 0), 7: (4, 511, 1)}
    nodes = [
        node("/dev/vfio/5", 5), node("/dev/vfio/devices/vfio1", 5, "vfio-5-0"),
        node("/dev/vfio/devices/vfio9", 5, "vfio-5-0"), node("/dev/vfio/devices/vfio8", 7, "vfio-7-0"),
    ]  # fmt: skip
    assert places(plug(5), nodes, groups, files) == [
        ("/dev/vfio/3", 511, 0), ("/dev/vfio/5", 511, 0), ("/dev/vfio/devices/vfio0", 244, 0),
        ("/dev/vfio/devices/vfio9", 244, 0),
    ], "vfio1 is another's in the guest"  # fmt: skip
    assert places(plug(5), nodes[:1], groups, files) == [("/dev/vfio/3", 511, 0), ("/dev/vfio/5", 511, 0)]


def test_a_function_of_the_device_file_interface_is_not_at_its_groups_path() -> None:
    files = {"vfio-5-0": ("/dev/vfio/7", 244, 0)}
    nodes = [node("/dev/vfio/7", 5), node("/dev/vfio/x", 5, "vfio-5-0")]
    found = places(plug(5), nodes, {5: (3, 511, 0)}, files)
    assert found == [("/dev/vfio/3", 511, 0), ("/dev/vfio/7", 244, 0), ("/dev/vfio/x", 244, 0)]
