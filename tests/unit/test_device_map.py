"""The map from functions of the host to those of the guest: functions of native drivers and of VFIO."""

from __future__ import annotations

from hawse.monitor.agent.answers import BoundFunction, NativeFunction, NativeNode
from hawse.monitor.devices.device_map import device_map
from hawse.monitor.devices.guest_nodes import locate
from hawse.plan.model import PlugStep
from hawse.vfio.node import VfioNode


def plug(group: int, *, host: str = "0000:3b:00.0", note: str = "") -> PlugStep:
    return PlugStep(
        group=group, label=host or "edu", host=host, note=note, commands=[], device=f"vfio-{group}-0", bus="port0",
        guest_address="0000:02:00.0",
    )  # fmt: skip


def node(path: str, group: int) -> VfioNode:
    return VfioNode(path=path, major=240, minor=0, host_group=group)


def bound(group: int) -> BoundFunction:
    return BoundFunction(group=group, major=511, minor=0, bars=[])


EDU = NativeFunction("edu", [], [])


def test_native_function_has_no_group_in_the_guest() -> None:
    nodes = [NativeNode("nvme0", "c", 241, 0), NativeNode("nvme0n1", "b", 259, 0)]
    native = NativeFunction("nvme", ["eth0"], nodes)
    plugs = [plug(5), plug(7, note="another address")]
    assert device_map(plugs, [], {"vfio-5-0": native, "vfio-7-0": EDU}) == [
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
    nodes = locate([node("/dev/vfio/7", 7)], [plug(7)], [bound(3)])
    entries = device_map([plug(5), plug(7)], nodes, {"vfio-5-0": EDU})
    assert [sorted(entry["guest"]) for entry in entries] == [["address", "driver"], ["address", "group"]]
    assert [entry["nodes"] for entry in entries] == [[], ["/dev/vfio/3", "/dev/vfio/7"]]
