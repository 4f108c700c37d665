"""A plan's data about each function: its address in the guest, and the reason if that is not the host's."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from hawse.errors import DeviceError
from hawse.monitor.agent.answers import BoundFunction, DeviceFile, DeviceNumbers
from hawse.monitor.devices.device_map import device_map
from hawse.monitor.devices.guest_nodes import locate
from hawse.plan.model import PlugStep, addresses
from hawse.planner.devices.device_options import DeviceOptions
from hawse.planner.devices.group_checks import check_host, to_bind
from hawse.planner.devices.guest_drivers import take_out
from hawse.planner.devices.named_groups import find_groups
from hawse.planner.devices.plugs import mirrored_bus, plug_steps, shape
from hawse.planner.devices.vfio_nodes import add_named, planned_nodes, with_groups
from hawse.vfio import inventory
from hawse.vfio.emulated import EmulatedGroup
from hawse.vfio.groups import Bar, Function, HostGroup, read_group
from hawse.vfio.node import container_node, file_node, group_node
from hawse.vfio.requests import Request
from hawse.vm.ports import plan_ports
from tests.support.sysfs import FakeSysfs

IOMMU = file_node(None, path="/dev/iommu", major=10, minor=126)
FILE = file_node(12, path="/dev/vfio/devices/vfio3", major=510, minor=3, function="0000:3b:00.0")


def group(number: int, *names: str, bars: tuple[Bar, ...] = ()) -> HostGroup:
    return HostGroup(number, tuple(Function(name, 0x8086, 0x10D3, 0x020000, "vfio-pci", bars) for name in names))


def steps(*groups: HostGroup | EmulatedGroup, keep: bool = True) -> list[PlugStep]:
    ports = plan_ports([shape(one, keep_address=keep) for one in groups])
    return plug_steps(groups, ports.slots, owner="c1", options=DeviceOptions(keep_addresses=keep))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["0000:3b:00.0"], 0x3B),
        (["0000:01:00.0"], 1),
        (["0000:ff:00.0"], 0xFF),
        (["0000:3b:00.1"], "it is 00.1 on its bus"),
        (["0000:3b:02.0"], "it is 02.0 on its bus"),
        (["0000:00:1f.6"], "it is on bus 00"),
        (["10000:01:00.0"], "its domain is 10000"),
        (["0000:3b:00.0", "0000:3b:00.1"], "group 7 has 2 functions, which share one bridge"),
    ],
)
def test_address_is_kept_if_a_root_port_can_provide_it(names: list[str], expected: int | str) -> None:
    bus = mirrored_bus(group(7, *names))
    assert bus == expected if isinstance(expected, int) else str(bus).startswith(expected)


def test_plan_names_the_reason_of_another_address() -> None:
    plugs = steps(group(1, "0000:3b:00.0"), group(2, "0000:3c:00.1"), EmulatedGroup(5, ("edu",)))
    assert [(step.guest_address, step.note) for step in plugs] == [
        ("0000:3b:00.0", ""),
        ("0000:02:00.0", "it is 00.1 on its bus, and a port of the guest has only 00.0"),
        ("0000:03:00.0", ""),
    ]
    assert addresses(plugs) == {"0000:3b:00.0": "0000:3b:00.0", "0000:3c:00.1": "0000:02:00.0"}


def test_addresses_are_not_kept_if_so_configured() -> None:
    """Then all VMs with few devices have the same ports, and one template serves them."""
    [step] = steps(group(1, "0000:3b:00.0"), keep=False)
    assert (step.guest_address, step.note) == ("0000:02:00.0", "devices.keep_addresses is off")


def test_windows_are_computed_from_the_bars() -> None:
    bars = (Bar(0, 2**33, False, True, True), Bar(2, 4096, False, False, False), Bar(4, 32, True, False, False))
    [function] = shape(group(1, "0000:3b:00.0", bars=bars)).functions
    assert (function.prefetchable, function.memory, function.io) == ((2**33,), (4096,), 32)


@pytest.mark.parametrize(
    ("drivers", "managed", "expected"),
    [
        (["ixgbe", "vfio-pci", ""], True, ["0000:3b:00.0", "0000:3b:00.2"]),
        (["mlx5_vfio_pci"], True, []),
        (["ixgbe"], False, []),
    ],
)
def test_functions_on_other_drivers_are_bound_if_so_configured(
    drivers: list[str], managed: bool, expected: list[str]
) -> None:
    functions = tuple(
        Function(f"0000:3b:00.{n}", 0x8086, 0x10D3, 0x020000, driver, ()) for n, driver in enumerate(drivers)
    )
    assert to_bind([HostGroup(7, functions), EmulatedGroup(5, ("edu",))], DeviceOptions(managed=managed)) == expected


@pytest.mark.parametrize("managed", [True, False])
@pytest.mark.parametrize(
    ("path", "text", "words"),
    [
        ("reserved_regions", "0x00000000000e0000 0x00000000000effff direct\n", "its firmware requires memory"),
        ("name", "vfio-noiommu\n", "a device without an IOMMU cannot be passed"),
    ],
)
def test_obstacle_that_binding_cannot_remove_is_refused_before_binding(
    tmp_path: Path, path: str, text: str, words: str, *, managed: bool
) -> None:
    host = FakeSysfs(str(tmp_path))
    host.function("0000:3b:00.0", group=7, driver="ixgbe" if managed else "vfio-pci")
    host.node(7, 511, 0)
    host.write(f"sys/kernel/iommu_groups/7/{path}", text)
    with pytest.raises(DeviceError, match=words) as caught:
        check_host([read_group(7, root=host.root)], DeviceOptions(managed=managed), root=host.root)
    assert caught.value.message.startswith("group 7 (0000:3b:00.0): ")
    [listing] = inventory.read(root=host.root, holders=lambda _: [])
    assert (listing.refusal, listing.remedy) == (caught.value.message, caught.value.hint)


@pytest.mark.parametrize("managed", [True, False])
def test_bridge_on_another_driver_is_reported_before_its_group_is_bound(tmp_path: Path, *, managed: bool) -> None:
    host = FakeSysfs(str(tmp_path))
    host.function("0000:3b:00.0", group=7, driver="ixgbe" if managed else "vfio-pci")
    host.function("0000:3a:00.0", group=7, driver="shpchp", class_code=0x060400)
    with pytest.raises(DeviceError, match=r"the bridge 0000:3a:00\.0 is bound to shpchp"):
        check_host([read_group(7, root=host.root)], DeviceOptions(managed=managed), root=host.root)


def test_group_that_will_be_bound_needs_no_node_yet(tmp_path: Path) -> None:
    host = FakeSysfs(str(tmp_path))
    host.function("0000:3b:00.0", group=7, driver="ixgbe")
    check_host([read_group(7, root=host.root)], DeviceOptions(managed=True), root=host.root)


def test_groups_of_the_annotation_add_nodes_and_rules() -> None:
    spec: dict[str, Any] = {
        "linux": {"devices": [{"path": "/dev/vfio/12"}], "resources": {"devices": [{"allow": False}]}}
    }
    asked = Request((group_node(12, major=240, minor=0),), (group(12, "0000:3b:00.0"),))
    before = copy.deepcopy(spec)
    request, changed = add_named(asked, [group(12, "0000:3b:00.0"), group(13, "0000:3c:00.0")], spec)
    assert spec == before
    spec = changed
    assert [one.number for one in request.groups] == [12, 13]
    assert [(node.path, node.host_group) for node in request.nodes] == [
        ("/dev/vfio/12", 12), ("/dev/vfio/vfio", None), ("/dev/vfio/13", 13),
    ]  # fmt: skip
    assert [device["path"] for device in spec["linux"]["devices"]] == ["/dev/vfio/12", "/dev/vfio/vfio", "/dev/vfio/13"]
    assert [rule["allow"] for rule in spec["linux"]["resources"]["devices"]] == [False, True, True]
    for device, rule in zip(spec["linux"]["devices"][1:], spec["linux"]["resources"]["devices"][1:], strict=True):
        assert (device["major"], device["minor"]) == (rule["major"], rule["minor"])


@pytest.mark.parametrize("group_too", [False, True])
def test_device_files_are_added_to_the_nodes_of_their_groups(group_too: bool) -> None:
    """They have the permissions requested for the file; a device that an engine names twice exists once."""
    entries = [("/dev/iommu", 10, 126), ("/dev/vfio/devices/vfio3", 510, 3)]
    nodes = (group_node(12, major=240, minor=0),) if group_too else ()
    if group_too:
        entries.append(("/dev/vfio/12", 240, 0))
    spec: dict[str, Any] = {
        "linux": {
            "devices": [
                {"path": path, "type": "c", "major": major, "minor": minor, "fileMode": 0o640, "uid": 7}
                for path, major, minor in entries
            ],
            "resources": {"devices": [{"allow": False}, {"allow": True, "type": "c", "major": 510, "minor": 3}]},
        }
    }
    files = (IOMMU, FILE)
    lone = group(12, "0000:3b:00.0")
    before = copy.deepcopy(spec)
    request, changed = with_groups(Request(nodes, (lone,), files), spec)
    assert spec == before
    spec = changed
    assert {(node.path, node.host_group) for node in request.nodes} == {("/dev/vfio/vfio", None), ("/dev/vfio/12", 12)}
    assert sorted(device["path"] for device in spec["linux"]["devices"]) == [
        "/dev/iommu", "/dev/vfio/12", "/dev/vfio/devices/vfio3", "/dev/vfio/vfio",
    ]  # fmt: skip
    assert all((device["fileMode"], device["uid"]) == (0o640, 7) for device in spec["linux"]["devices"])
    rules = {(rule.get("major"), rule.get("minor")) for rule in spec["linux"]["resources"]["devices"]}
    assert {(510, 3), (10, 196)} <= rules
    result = planned_nodes(request, steps(lone))
    assert [(one.path, one.device) for one in result if one.is_file] == [
        ("/dev/iommu", ""), ("/dev/vfio/devices/vfio3", "vfio-12-0"),
    ]  # fmt: skip


def test_device_file_belongs_to_its_function() -> None:
    """Functions of an emulated group have no address: the file is that of the first function."""
    pair, several = group(12, "0000:3b:00.0", "0000:3b:00.1"), EmulatedGroup(5, ("edu", "igb", "edu"))
    files = [
        file_node(12, path="/dev/a", major=510, minor=1, function="0000:3b:00.1"),
        file_node(12, path="/dev/b", major=510, minor=0, function="0000:3b:00.0"),
        file_node(5, path="/dev/vfio/devices/vfio5", major=0, minor=5), IOMMU,
    ]  # fmt: skip
    request = Request((container_node(),), (pair, several), tuple(files))
    nodes = planned_nodes(request, steps(several, pair))
    assert nodes[0] == container_node()
    assert [(node.path, node.device) for node in nodes[1:]] == [
        ("/dev/a", "vfio-12-1"), ("/dev/b", "vfio-12-0"), ("/dev/vfio/devices/vfio5", "vfio-5-0"), ("/dev/iommu", ""),
    ]  # fmt: skip
    assert [replace(node, device="") for node in nodes[1:]] == files


def test_group_that_is_named_twice_is_passed_once() -> None:
    request, spec = add_named(Request((), ()), find_groups(["5", "5"], {5: EmulatedGroup(5, ("edu",))}), {})
    assert len(request.groups) == 1
    assert [device["path"] for device in spec["linux"]["devices"]] == ["/dev/vfio/vfio", "/dev/vfio/5"]


def test_map_has_both_addresses_of_each_function_and_its_nodes() -> None:
    plugs = steps(group(12, "0000:3b:00.0"), group(3, "0000:3c:00.1"))
    nodes = [container_node(), group_node(12, major=240, minor=0), group_node(3, major=240, minor=1)]
    answers = [BoundFunction(3, 511, 0, []), BoundFunction(4, 511, 1, [])]
    assert device_map(plugs, locate(nodes, plugs, answers), {}) == [
        {
            "device": "0000:3b:00.0",
            "host": {"address": "0000:3b:00.0", "group": 12},
            "guest": {"address": "0000:3b:00.0", "group": 3},
            "nodes": ["/dev/vfio/3", "/dev/vfio/12"],
        },
        {
            "device": "0000:3c:00.1",
            "host": {"address": "0000:3c:00.1", "group": 3},
            "guest": {"address": "0000:02:00.0", "group": 4},
            "nodes": ["/dev/vfio/4"],
            "note": "it is 00.1 on its bus, and a port of the guest has only 00.0",
        },
    ], "the path /dev/vfio/3 is the other group's"


def test_map_has_requested_device_files_that_exist_in_the_guest() -> None:
    plugs = steps(group(12, "0000:3b:00.0", "0000:3b:00.1"))
    nodes = [IOMMU, group_node(12, major=240, minor=0), replace(FILE, device="vfio-12-1")]
    own = ["/dev/vfio/9", "/dev/vfio/12"]

    def mapped(*files: DeviceFile | None) -> list[list[str]]:
        answers = [BoundFunction(9, 245, 0, [], file, DeviceNumbers(10, 120)) for file in files]
        return [entry["nodes"] for entry in device_map(plugs, locate(nodes, plugs, answers), {})]

    with_files = [*own, "/dev/vfio/devices/vfio1", "/dev/vfio/devices/vfio3"]
    assert mapped(DeviceFile(0, 244, 0), DeviceFile(1, 244, 1)) == [own, with_files]
    assert mapped(None, None) == [own, own]


def test_functions_of_a_group_share_one_iommufd() -> None:
    pair = group(12, "0000:3b:00.0", "0000:3b:00.1")
    plugs = plug_steps([pair], plan_ports([shape(pair)]).slots, owner="c1", by_file={12})
    commands = [command for step in plugs for command in step.commands]
    assert [name for name, _ in commands] == ["object-add", "device_add", "device_add"]
    assert commands[0][1] == {"qom-type": "iommufd", "id": "iommufd-12"}
    assert {arguments["iommufd"] for _, arguments in commands[1:]} == {"iommufd-12"}


def test_native_devices_have_no_vfio_nodes() -> None:
    """The host's numbers belong to other devices in the guest."""
    entries = [("/dev/iommu", 10, 126), ("/dev/vfio/devices/vfio3", 510, 3), ("/dev/fuse", 10, 229)]
    devices = [{"path": p, "type": "c", "major": major, "minor": minor, "uid": 7} for p, major, minor in entries]
    rules = [{"allow": True, "type": "c", "major": major, "minor": minor} for _, major, minor in entries]
    spec: dict[str, Any] = {"linux": {"devices": devices, "resources": {"devices": rules}}}
    files = (IOMMU, FILE)
    before = copy.deepcopy(spec)
    with_nodes = with_groups(Request((), (group(12, "0000:3b:00.0"),), files), spec)
    request, changed, rights = take_out(*with_nodes)
    assert spec == before
    assert "/dev/vfio/12" in [device["path"] for device in with_nodes[1]["linux"]["devices"]]
    spec = changed
    assert (request.nodes, request.files, rights) == ((), (), {12: {"uid": 7}})
    assert [device["path"] for device in spec["linux"]["devices"]] == ["/dev/fuse"]
    assert [(rule["major"], rule["minor"]) for rule in spec["linux"]["resources"]["devices"]] == [(10, 229)]
