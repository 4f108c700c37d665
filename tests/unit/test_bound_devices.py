"""Device nodes that mounts bind, and all device nodes in the plan of a container."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from hawse.errors import ConfigError, DeviceError
from hawse.oci.default_spec import example
from hawse.oci.device_rules import effective
from hawse.oci.guest.bind_sources import DeviceNode, device_node
from hawse.oci.guest.mounts import BoundNode, HostFiles
from hawse.oci.guest.specification import GuestPlan, plan_guest
from hawse.oci.load import load_bundle
from hawse.plan.model import DiskPlan
from hawse.planner.devices.other_nodes import OtherNodes, read_nodes
from hawse.planner.devices.privileged import shorten
from hawse.vfio.requests import find_request
from tests.support.bundles import write
from tests.support.sysfs import FakeSysfs

NODES = {
    "/dev/sdb": DeviceNode("b", 8, 16, 0o660, 0, 6),
    "/srv/disk": DeviceNode("b", 8, 32, 0o600, 1, 2),
    "/dev/null": DeviceNode("c", 1, 3, 0o666, 0, 0),
    "/srv/null": DeviceNode("c", 1, 3, 0o666, 0, 0),
    "/dev/ttyUSB0": DeviceNode("c", 188, 0, 0o660, 0, 20),
    "/srv/vfio": DeviceNode("c", 511, 7, 0o600, 0, 0),
    "/dev/vfio/vfio": DeviceNode("c", 10, 196, 0o666, 0, 0),
}
ALL = {"allow": True, "access": "rwm"}


class Host:
    """A host with two disks and group 7; ``plan`` plans a specification."""

    def __init__(self, directory: Path) -> None:
        self.bundle = directory / "bundle"
        (self.bundle / "rootfs").mkdir(parents=True)
        self.sysfs = FakeSysfs(str(directory))
        for number, name in ((16, "sdb"), (32, "sdc")):
            self.sysfs.write(f"sys/devices/virtual/block/{name}/size", "2048\n")
            self.sysfs.link(f"sys/dev/block/8:{number}", f"../../devices/virtual/block/{name}")
        self.sysfs.function("0000:07:00.0", group=7)
        self.sysfs.node(7, 511, 7)

    def plan(
        self, spec: dict[str, Any], *, allow: tuple[str, ...] = ("*",)
    ) -> tuple[GuestPlan, OtherNodes, dict[str, Any]]:
        write(str(self.bundle), spec)
        bundle = load_bundle(str(self.bundle))
        guest = plan_guest(bundle, container="c1", files=HostFiles(exists=lambda _: True, node=NODES.get))
        linux = bundle.spec.linux
        request = find_request((linux.devices or ()) if linux else (), emulated={}, root=self.sysfs.root)
        return guest, *read_nodes(bundle, guest, request, {}, allow=allow, root=self.sysfs.root)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def spec_with(
    *binds: tuple[str, str], rules: tuple[dict[str, Any], ...] = (ALL,), devices: tuple[dict[str, Any], ...] = ()
) -> dict[str, Any]:
    spec = example()
    spec["mounts"] = [
        {"destination": to, "type": "bind", "source": source, "options": ["rbind"]} for source, to in binds
    ]
    spec["linux"]["resources"]["devices"] = list(rules)
    spec["linux"]["devices"] = list(devices)
    return spec


def numbered(kind: str, major: int, minor: int, **more: Any) -> dict[str, Any]:
    return {"type": kind, "major": major, "minor": minor, **more}


def own_rules(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """The rules beyond those of a specification without rules."""
    rules = spec["linux"]["resources"]["devices"]
    defaults = effective("config.json", ())
    assert all(rule in rules for rule in defaults)
    return [rule for rule in rules if rule not in defaults]


def test_bound_node_becomes_a_device_of_the_container(host: Host) -> None:
    guest, nodes, planned = host.plan(
        spec_with(("/dev/sdb", "/dev/xvda"), ("/srv/disk", "/dev/xvdb"), ("/srv/null", "/n"))
    )
    assert planned["mounts"] == []
    assert [share.name for share in guest.shares] == ["rootfs"]
    assert planned["linux"]["devices"] == [
        numbered("b", 8, 16, path="/dev/xvda", fileMode=0o660, uid=0, gid=6),
        numbered("b", 8, 32, path="/dev/xvdb", fileMode=0o600, uid=1, gid=2),
        numbered("c", 1, 3, path="/n", fileMode=0o666, uid=0, gid=0),
    ]
    assert [(disk.name, disk.writable) for disk in nodes.disks] == [("sdb", True), ("sdc", True)]
    assert nodes.warnings == []


def test_rules_apply_to_bound_nodes(host: Host) -> None:
    rules = ({"allow": False, "access": "rwm"}, numbered("b", 8, 16, allow=True, access="r"))
    _, nodes, planned = host.plan(spec_with(("/dev/sdb", "/dev/xvda"), ("/srv/disk", "/dev/xvdb"), rules=rules))
    assert nodes.disks == [DiskPlan(major=8, minor=16, name="sdb", writable=False)]
    assert own_rules(planned) == [numbered("b", 8, 16, allow=True, access="r")]


def test_node_on_a_nodev_mount_cannot_be_opened(host: Host) -> None:
    spec = spec_with(("/dev/sdb", "/dev/xvda"))
    spec["mounts"][0]["options"] = ["rbind", "nodev"]
    guest, nodes, planned = host.plan(spec)
    device = numbered("b", 8, 16, path="/dev/xvda", fileMode=0o660, uid=0, gid=6)
    assert guest.mounts.bound == [BoundNode(0, "/dev/sdb", device, True)]
    assert guest.mounts.bound[0].destination == "/dev/xvda"
    assert planned["linux"]["devices"] == [device]
    assert nodes.disks == []


def test_path_that_the_guest_provides_stays_a_mount(host: Host) -> None:
    _, _, planned = host.plan(spec_with(("/dev/null", "/dev/x"), ("/dev/vfio/vfio", "/dev/vfio/vfio")))
    assert [mount["source"] for mount in planned["mounts"]] == ["/dev/null", "/dev/vfio/vfio"]


def test_bound_character_device_is_refused_and_its_mount_named(host: Host) -> None:
    rules = ({"allow": False, "access": "rwm"}, numbered("c", 188, -1, allow=True, access="rwm"))
    with pytest.raises(DeviceError, match=r"^mounts\[0\]\.source: /dev/ttyUSB0 \(188:0\): character devices of"):
        host.plan(spec_with(("/dev/ttyUSB0", "/dev/ttyUSB0"), rules=rules))
    _, nodes, planned = host.plan(spec_with(("/dev/ttyUSB0", "/dev/tty9")))
    assert planned["linux"]["devices"] == planned["mounts"] == []
    assert "/dev/tty9: character devices of the host cannot be passed to a VM" in nodes.warnings[0]


def test_bound_vfio_node_is_refused_at_any_path(host: Host) -> None:
    with pytest.raises(ConfigError, match=r"mounts\[0\]\.source: /srv/vfio is a VFIO device of the host") as caught:
        host.plan(spec_with(("/srv/vfio", "/dev/vfio/7")))
    assert "linux.devices" in caught.value.hint


def test_configured_limits_apply_to_disks(host: Host) -> None:
    device = numbered("b", 8, 16, path="/dev/xvda")
    assert len(host.plan(spec_with(devices=(device,)), allow=("8086:*", "block:sdb"))[1].disks) == 1
    with pytest.raises(DeviceError, match=r"linux\.devices: /dev/xvda: sdb \(8:16\) is not in the list of allowed"):
        host.plan(spec_with(devices=(device,)), allow=("8086:*",))


def test_rules_for_vfio_are_kept_and_others_removed(host: Host) -> None:
    group = numbered("c", 511, 7, path="/dev/vfio/7")
    rules = (
        {"allow": False, "access": "rwm"},
        numbered("c", 511, 7, allow=True, access="rw"),
        numbered("c", 188, -1, allow=True, access="rw"),
    )
    _, nodes, planned = host.plan(spec_with(rules=rules, devices=(group,)))
    assert own_rules(planned) == [rules[1]]
    [warning] = nodes.warnings
    assert warning.startswith("linux.resources.devices[2]: c 188:* has no effect")


@pytest.mark.parametrize("rules", [(), (numbered("b", 8, 32, allow=True, access="rw"),)])
def test_node_without_a_matching_rule_is_denied(host: Host, rules: tuple[dict[str, Any], ...]) -> None:
    """Without rules crun allows all devices, and runc denies all."""
    _, nodes, planned = host.plan(spec_with(rules=rules, devices=(numbered("b", 8, 16, path="/dev/xvda"),)))
    assert nodes.disks == []
    assert own_rules(planned) == []


def test_container_without_nodes_has_the_default_devices(host: Host) -> None:
    _, nodes, planned = host.plan(spec_with(rules=()))
    assert own_rules(planned) == []
    assert nodes == OtherNodes()


def test_device_at_a_path_is_found(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("/dev/null")
    os.mkfifo(tmp_path / "pipe")
    null = os.stat("/dev/null")
    assert device_node(f"{tmp_path}/link") == DeviceNode(
        "c", 1, 3, stat.S_IMODE(null.st_mode), null.st_uid, null.st_gid
    )
    for name in ("file", "pipe", "missing", ""):
        assert device_node(f"{tmp_path}/{name}") is None


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ([], []),
        (["/dev/kvm", "/dev/mem"], ["/dev/kvm", "/dev/mem"]),
        ([f"/dev/tty{n}" for n in range(3)], ["/dev/tty0", "/dev/tty1", "/dev/tty2"]),
        (["/dev/a1", *(f"/dev/tty{n}" for n in range(64))], ["/dev/a1", "/dev/ttyN (64 nodes)"]),
        ([f"/dev/disk{n}p1" for n in range(5)], [f"/dev/disk{n}p1" for n in range(5)]),
    ],
)
def test_nodes_of_one_kind_are_counted(paths: list[str], expected: list[str]) -> None:
    assert shorten(paths) == expected
