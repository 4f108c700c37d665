"""The map from functions of the host to those of the guest: native functions, and the owner of each node."""

from __future__ import annotations

from hawse.monitor.agent.answers import NativeFunction, NativeNode
from hawse.monitor.devices.device_map import GuestGroup, Place, device_map, locate, places
from hawse.plan.model import PlugStep
from hawse.vfio.node import VfioNode, container_node


def plug(group: int, *, host: str = "0000:3b:00.0", note: str = "") -> PlugStep:
    return PlugStep(
        group=group, label=host or "edu", host=host, note=note, commands=[], device=f"vfio-{group}-0", bus="port0",
        guest_address="0000:02:00.0",
    )  # fmt: skip


def node(path: str, group: int | None, device: str = "") -> VfioNode:
    return VfioNode(path=path, major=240, minor=0, host_group=group, is_file=bool(device), device=device)


EDU = NativeFunction("edu", [], [])


def test_native_function_has_no_group_in_the_guest() -> None:
    nodes = [NativeNode("nvme0", "c", 241, 0), NativeNode("nvme0n1", "b", 259, 0)]
    native = NativeFunction("nvme", ["eth0"], nodes)
    plugs = [plug(5), plug(7, note="another address")]
    assert device_map(plugs, [], {}, {}, {"vfio-5-0": native, "vfio-7-0": EDU}) == [
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


def test_native_and_vfio_functions_are_in_one_map() -> None:
    entries = device_map([plug(5), plug(7)], [], {7: GuestGroup(3, 511, 0)}, {}, {"vfio-5-0": EDU})
    assert [sorted(entry["guest"]) for entry in entries] == [["address", "driver"], ["address", "group"]]
    assert [entry["nodes"] for entry in entries] == [[], ["/dev/vfio/3"]]


def test_path_of_another_function_in_the_guest_is_not_used() -> None:
    groups = {5: GuestGroup(7, 511, 0), 7: GuestGroup(5, 511, 1)}
    nodes = [node("/dev/vfio/5", 5), node("/dev/vfio/7", 7), node("/dev/vfio/mine", 5)]
    assert places(plug(5), nodes, groups, {}) == [("/dev/vfio/7", 511, 0), ("/dev/vfio/mine", 511, 0)]
    assert places(plug(7), nodes, groups, {}) == [("/dev/vfio/5", 511, 1)]


def test_device_file_is_at_its_path_in_the_guest_and_at_the_requested_one() -> None:
    files = {
        "vfio-5-0": Place("/dev/vfio/devices/vfio0", 244, 0),
        "vfio-7-0": Place("/dev/vfio/devices/vfio1", 244, 1),
    }
    groups = {5: GuestGroup(3, 511, 0), 7: GuestGroup(4, 511, 1)}
    nodes = [
        node("/dev/vfio/5", 5), node("/dev/vfio/devices/vfio1", 5, "vfio-5-0"),
        node("/dev/vfio/devices/vfio9", 5, "vfio-5-0"), node("/dev/vfio/devices/vfio8", 7, "vfio-7-0"),
    ]  # fmt: skip
    assert places(plug(5), nodes, groups, files) == [
        ("/dev/vfio/3", 511, 0), ("/dev/vfio/5", 511, 0), ("/dev/vfio/devices/vfio0", 244, 0),
        ("/dev/vfio/devices/vfio9", 244, 0),
    ], "in the guest, vfio1 belongs to another function"  # fmt: skip
    assert places(plug(5), nodes[:1], groups, files) == [("/dev/vfio/3", 511, 0), ("/dev/vfio/5", 511, 0)]


def test_function_with_a_device_file_is_not_at_the_path_of_its_group() -> None:
    files = {"vfio-5-0": Place("/dev/vfio/7", 244, 0)}
    nodes = [node("/dev/vfio/7", 5), node("/dev/vfio/x", 5, "vfio-5-0")]
    locations = places(plug(5), nodes, {5: GuestGroup(3, 511, 0)}, files)
    assert locations == [("/dev/vfio/3", 511, 0), ("/dev/vfio/7", 244, 0), ("/dev/vfio/x", 244, 0)]


def test_every_node_gets_its_path_in_the_guest() -> None:
    """The path and the numbers of the specification are kept; a device file belongs to the group of its function."""
    groups = {5: GuestGroup(3, 511, 0), 7: GuestGroup(4, 511, 1)}
    files = {"": Place("/dev/iommu", 10, 120), "vfio-7-0": Place("/dev/vfio/devices/vfio0", 244, 0)}
    iommu = VfioNode(path="/dev/iommu", major=10, minor=126, host_group=None, is_file=True)
    nodes = [container_node(), node("/dev/x", 5), iommu, node("/dev/vfio/devices/vfio9", 7, "vfio-7-0")]

    def located(files: dict[str, Place]) -> list[tuple[int | None, str, tuple[int, int] | None]]:
        locations = locate(nodes, groups, files)
        assert [(each.path, each.host_numbers) for each in locations] == [
            (each.path, each.host_numbers) for each in nodes
        ]
        return [(each.guest_group, each.guest_path, each.guest_numbers) for each in locations]

    both = [(None, "", (10, 196)), (3, "/dev/vfio/3", (511, 0))]
    assert located(files) == [
        *both, (None, "/dev/iommu", (10, 120)), (4, "/dev/vfio/devices/vfio0", (244, 0))
    ]  # fmt: skip
    assert located({}) == [
        *both, (None, "/dev/iommu", None), (4, "/dev/vfio/devices/vfio9", None)
    ], "the guest kernel has no device files"  # fmt: skip
