"""VFIO devices of the host in a privileged container, and the messages about devices that cannot be passed."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hawse.config import Config
from hawse.errors import DeviceError
from hawse.oci.default_spec import example
from hawse.oci.device_rules import allows_all
from hawse.oci.load import load_bundle
from hawse.oci.types import Device, DeviceRule
from hawse.planner.devices.device_options import DeviceOptions
from hawse.planner.devices.group_checks import check_host
from hawse.planner.devices.plugs import shape
from hawse.planner.devices.privileged import choose, leave_out
from hawse.planner.request import ContainerRequest, read_request
from hawse.vfio.requests import Group, find_request
from hawse.vm.ports import plan_ports
from tests.support.bundles import write
from tests.support.sysfs import FakeSysfs

ALL = DeviceRule(allow=True, access="rwm")
NONE = DeviceRule(allow=False, access="rwm")


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([], False),
        ([NONE], False),
        ([ALL], True),
        ([NONE, ALL], True),
        ([ALL, NONE], False),
        ([ALL, DeviceRule(allow=False, access="m")], False),
        ([DeviceRule(allow=True, access="r")], True),
        ([DeviceRule(allow=True, type="", access="mrw")], True),
        ([DeviceRule(allow=True, major=-1, minor=-1, access="rwm")], True),
        ([DeviceRule(allow=True, type="c", access="rwm")], False),
        ([DeviceRule(allow=True, type="c", major=511, access="rwm")], False),
        ([DeviceRule(allow=True, major=10, access="rwm")], True),
        ([ALL, DeviceRule(allow=False, type="c", major=511, access="rwm")], True),
    ],
)
def test_container_is_privileged_if_the_last_rule_for_all_devices_allows_all(
    rules: list[DeviceRule], expected: bool
) -> None:
    """As in runc: a rule of type a applies to all devices, whatever its numbers and its access."""
    assert allows_all(rules) is expected


@pytest.fixture
def host(tmp_path: Path) -> FakeSysfs:
    """Group 7 can be passed, and group 8 also by its device file; 9 is not viable, the device of 10 was removed."""
    sysfs = FakeSysfs(str(tmp_path))
    for number, driver in ((7, "vfio-pci"), (8, "vfio-pci"), (9, "vfio-pci"), (10, "vfio-pci")):
        sysfs.function(f"0000:{number:02x}:00.0", group=number, driver=driver)
        sysfs.node(number, 240, number)
    sysfs.device_file("0000:08:00.0", 0, 510, 0)
    sysfs.function("0000:09:00.1", group=9, driver="ixgbe")
    (tmp_path / "dev/vfio/10").unlink()
    return sysfs


def node(path: str, major: int, minor: int) -> Device:
    return Device(path=path, type="c", major=major, minor=minor)


NODES = [
    node("/dev/null", 1, 3),
    node("/dev/vfio/vfio", 10, 196),
    node("/dev/iommu", 10, 126),
    node("/dev/vfio/devices/vfio0", 510, 0),
    *(node(f"/dev/vfio/{number}", 240, number) for number in (7, 8, 9, 10)),
    node("/dev/vfio/noiommu-0", 240, 77),
]


def test_groups_that_cannot_be_passed_are_omitted_and_named(host: FakeSysfs) -> None:
    looked_at: list[list[int]] = []

    def check(groups: Sequence[Group]) -> None:
        looked_at.append([group.number for group in groups])
        check_host(groups[-1:], DeviceOptions(), root=host.root)

    kept, left_out = choose(NODES, functools.partial(find_request, emulated={}, root=host.root), check)
    assert [device.path for device in kept] == [
        "/dev/null", "/dev/vfio/vfio", "/dev/iommu", "/dev/vfio/devices/vfio0", "/dev/vfio/7", "/dev/vfio/8",
    ]  # fmt: skip
    assert list(left_out) == ["/dev/vfio/9", "/dev/vfio/10", "/dev/vfio/noiommu-0"]
    assert "is bound to ixgbe" in left_out["/dev/vfio/9"].message
    assert looked_at == [[8], [8, 7], [8, 7, 9], [8, 7, 10]], (
        "an omitted group takes no port, and each group occurs once"
    )


def test_groups_without_a_free_port_are_omitted(tmp_path: Path) -> None:
    """A VM has I/O windows for ten groups if more ports than that need one."""
    host = FakeSysfs(str(tmp_path))
    port = "0x0000000000001000 0x000000000000101f 0x0000000000040101"
    for number in range(1, 18):
        host.function(f"0000:{number:02x}:00.0", group=number, resource=port)
        host.node(number, 240, number)
    nodes = [node(f"/dev/vfio/{number}", 240, number) for number in range(1, 18)]
    kept, left_out = choose(
        nodes,
        functools.partial(find_request, emulated={}, root=host.root),
        lambda groups: plan_ports([shape(group) for group in groups]),
    )
    assert kept
    assert left_out
    assert len(kept) + len(left_out) == len(nodes)
    assert all("I/O" in error.message for error in left_out.values())


def test_omitted_group_is_removed_from_the_specification_with_one_warning() -> None:
    spec: dict[str, Any] = {"linux": {"devices": [{"path": "/dev/null"}, {"path": "/dev/vfio/9"}, {"path": "/dev/x"}]}}
    busy = DeviceError("group 9 is in use", hint="end it")
    changed, text = leave_out(
        spec, {"/dev/vfio/9": busy, "/dev/x": busy, "/dev/vfio/10": DeviceError("group 10 is gone")}
    )
    assert changed == {"linux": {"devices": [{"path": "/dev/null"}]}}
    assert len(spec["linux"]["devices"]) == 3
    assert text == (
        "linux.devices: the container may use every device, but these nodes are left out: "
        "/dev/vfio/9, /dev/x: group 9 is in use [end it]; /dev/vfio/10: group 10 is gone"
    )


@pytest.mark.parametrize("privileged", [True, False])
def test_group_is_omitted_only_if_all_devices_are_allowed(tmp_path: Path, privileged: bool) -> None:
    """The host does not have this group. A container that requests all devices omits it; naming this one group is an
    error."""
    spec = example()
    spec["linux"]["devices"] = [{"path": "/dev/vfio/999999", "type": "c", "major": 4095, "minor": 1048575}]
    rule = {"allow": True, "access": "rwm"} | ({} if privileged else {"type": "c", "major": 4095, "minor": 1048575})
    spec["linux"]["resources"] = {"devices": [{"allow": False, "access": "rwm"}, rule]}
    (tmp_path / "rootfs").mkdir()
    write(str(tmp_path), spec)

    def read() -> ContainerRequest:
        return read_request(load_bundle(str(tmp_path)), Config(), lambda *_: None, name="c1")

    if not privileged:
        with pytest.raises(DeviceError, match="group 999999 is missing"):
            read()
        return
    request = read()
    assert (request.devices.request.nodes, request.groups) == ((), ())
    assert request.devices.spec["linux"]["devices"] == []
    [(level, text)] = request.notes
    assert level == "warning"
    assert "left out: /dev/vfio/999999: group 999999 is missing" in text, "neither field nor path is repeated"
