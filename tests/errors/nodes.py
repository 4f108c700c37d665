"""Errors of device nodes that are not VFIO devices, and of device rules."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import Any

from hawse.monitor.devices.claims import Claims
from hawse.monitor.devices.disks import Disks
from hawse.nodes import decide as nodes
from hawse.nodes.decide import Wish
from hawse.nodes.numbers import strangers
from hawse.oci.guest import pci_environment as addresses
from hawse.oci.types import Device, DeviceRule
from hawse.plan.capacity import Room
from hawse.plan.model import DiskPlan
from hawse.planner.devices.other_nodes import disk_host
from hawse.planner.devices.privileged import leave_out
from hawse.vfio.emulated import EmulatedGroup
from hawse.vfio.requests import find_request
from hawse.vm.ports import plan_ports
from tests.errors.situation import Act, bundle
from tests.support.fake_qmp import FakeLink, FakeQmp
from tests.support.sysfs import FakeSysfs


def other_node(kind: str, major: int, minor: int, path: str, *, allow: tuple[str, ...] = ("*",)) -> Act:
    """A node that is not a VFIO node, allowed by a rule, on a host with sdb, an empty loop device and two others."""

    def act(host: FakeSysfs) -> Any:
        for numbers, name, size in (("8:16", "sdb", 2048), ("7:0", "loop0", 0)):
            host.write(f"sys/devices/virtual/block/{name}/size", f"{size}\n")
            host.link(f"sys/dev/block/{numbers}", f"../../devices/virtual/block/{name}")
        for numbers, where, driver in (
            ("188:0", "usb1/ttyUSB0", "ftdi_sio"),
            ("231:192", "0000:3b:00.0/infiniband_verbs/uverbs0", "mlx5_core"),
        ):
            host.write(f"sys/devices/{where}/dev", numbers)
            host.link(f"sys/devices/{where}/driver", f"/drivers/{driver}")
            host.link(f"sys/dev/char/{numbers}", f"../../devices/{where}")
        disks = disk_host(allow, host.root)
        rules = [DeviceRule(allow=True, type=kind, major=major, minor=minor, access="rw")]
        return nodes.decide([Wish(f"linux.devices: {path}", path, kind, major, minor)], rules, disks)

    return act


def whole_dev(host: FakeSysfs) -> str:
    paths = [("/dev/kvm", "c", 10, 232), ("/dev/sdb", "b", 8, 16), *((f"/dev/tty{n}", "c", 4, n) for n in range(64))]
    wishes = [Wish(path, path, kind, major, minor) for path, kind, major, minor in paths]
    decision = nodes.decide(wishes, [DeviceRule(allow=True, access="rwm")], disk_host(("*",), host.root), whole=True)
    return leave_out({"linux": {"devices": []}}, decision.left_out)[1]


def unopened(_host: FakeSysfs) -> Any:
    def no_medium(*_: int, **__: bool) -> int:
        raise OSError(errno.ENOMEDIUM, os.strerror(errno.ENOMEDIUM))

    disks = Disks(Claims(plan_ports([]).ports), seconds=1, open_device=no_medium)
    qmp, link = FakeQmp(), FakeLink({})
    return asyncio.run(disks.attach([DISK], owner="c1", qmp=qmp, link=link))  # type: ignore[arg-type]


def rules(*entries: dict[str, Any]) -> Act:
    """A bundle with these device rules."""
    return bundle(linux={"resources": {"devices": list(entries)}})


DISK = DiskPlan(major=8, minor=16, name="sdb", writable=True)

OTHER_RULE = {"allow": True, "type": "c", "major": 188, "access": "rw"}

SITUATIONS: dict[str, Act] = {
    "A character device of the host is requested": other_node("c", 188, 0, "/dev/ttyUSB0"),
    "A character device of a host PCI function is requested": other_node("c", 231, 192, "/dev/infiniband/uverbs0"),
    "KVM is requested": other_node("c", 10, 232, "/dev/kvm"),
    "The device list of a privileged container is the host's whole /dev (a warning)": whole_dev,
    "A requested block device does not exist": other_node("b", 8, 32, "/dev/sdc"),
    "A block device is empty": other_node("b", 7, 0, "/dev/loop0"),
    "An administrator does not allow the block device": other_node("b", 8, 16, "/dev/sdb", allow=("8086:*",)),
    "A device rule has a number that no node has (a warning)": lambda _host: strangers([OTHER_RULE], [])[0],
    "A variable names devices that are not passed (a warning)": lambda _host: addresses.warnings(
        "process.env", ["PCIDEVICE_X=0000:3b:00.0,0000:3b:00.1"], {"0000:3b:00.0": "0000:02:00.0"}
    )[0],
    "A command-line argument names a device by its host address (a warning)": lambda _host: addresses.in_arguments(
        "process.args", ["0000:3b:00.0"], {"0000:3b:00.0": "0000:02:00.0"}
    )[0],
    "A VM has no free port for a block device": lambda _host: Room(spares=[]).check_disks([DISK], groups=0),
    "The host cannot open a block device": unopened,
    "A device rule has no access": rules({"allow": True, "type": "c", "major": 511, "minor": 5}),
    "A device rule has an unknown type": rules({"allow": True, "type": "u", "access": "rw"}),
    "A device rule has an invalid number": rules({"allow": True, "type": "c", "major": -2, "access": "rw"}),
    "A device rule denies a part of a wildcard": rules(
        {"allow": True, "type": "c", "major": 511, "access": "rw"},
        {"allow": False, "type": "c", "major": 511, "minor": 5, "access": "w"},
    ),
    "A device rule denies a default device of every container": rules(
        {"allow": True, "access": "rwm"}, {"allow": False, "type": "c", "major": 1, "access": "rw"}
    ),
    "A node is neither a device of the host nor an emulated group": lambda host: find_request(
        [Device(path="/dev/vfio-mine/7", type="c", major=511, minor=7)], emulated={5: EmulatedGroup(5, ("edu",))},
        root=host.root,
    ),
}  # fmt: skip
