"""What planning logs: the order of its notes, and that a failure does not lose those before it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hawse.config import Config
from hawse.errors import HawseError
from hawse.oci.load import load_bundle
from hawse.plan.capacity import Room
from hawse.planner.sandbox import plan_container, plan_sandbox
from hawse.vm.ports import MIB, Port
from tests.support.bundles import add_devices
from tests.support.ready import DEVICES, EMULATED, Planner, make_qemu

ROOM = Room(spares=[Port("port1", 1, True, 64 * MIB, 64 * MIB, False)], memory_mib=1024)
COLD = f'[devices]\nplug = "cold"\n{EMULATED}'
#: The beginnings of notes. Of the specification and of its devices:
READ = [
    "warning: process.apparmorProfile: ",
    "warning: mounts[0].source: /sys is the guest's",
    "warning: linux.devices: the container may use every device, but these nodes are left out: /dev/vfio/999999",
]
#: of the VM: acceleration, share, jail;
MACHINE = ["debug: acceleration: tcg", "warning: vm.share: files are shared by 9p", "warning: QEMU is not confined: "]
SIZE = ["warning: vm.memory_mib: "]
#: and of the container.
CONTAINER = ["debug: emulated edu is ", "warning: process.env: PCIDEVICE_X ", "warning: NOTIFY_SOCKET: @none: "]
COMES_TOO_LATE = ["warning: devices.plug is cold, but the pod's virtual machine already runs"]


@pytest.fixture
def host(tmp_path: Path) -> Planner:
    """A host and a bundle for which each step has a note."""
    host = Planner(str(tmp_path))
    make_qemu(host.qemu, devices=[name for name in DEVICES if name != "vhost-user-fs-pci"])
    host.write(change)
    return host


def change(spec: dict[str, Any]) -> None:
    spec["process"] |= {"apparmorProfile": "docker-default", "env": ["PCIDEVICE_X=0000:3b:00.0"]}
    spec["mounts"] = [{"destination": "/sys", "type": "bind", "source": "/sys", "options": ["rbind"]}]
    add_devices(spec, [("/dev/vfio/vfio", 10, 196), ("/dev/vfio/5", 0, 0), ("/dev/vfio/999999", 4095, 7)])
    spec["linux"]["resources"]["devices"] = [{"allow": True, "access": "rwm"}]


def config_of(host: Planner, *, vm: str = "", more: str = EMULATED) -> Config:
    return host.load(host.config(vm=f'confine = "auto"\n{vm}', more=more))


def begins(notes: Sequence[tuple[str, str]], expected: Sequence[str]) -> bool:
    """Whether there are so many notes, and each begins with the level and the text in its place."""
    lines = [f"{level}: {text.partition('/config.json: ')[2] or text}" for level, text in notes]
    return len(lines) == len(expected) and all(map(str.startswith, lines, expected))


def test_notes_of_a_sandbox_are_in_the_order_of_its_steps(host: Planner) -> None:
    config = config_of(host, vm="memory_mib = 4194304")
    _, notes = plan_sandbox(load_bundle(host.bundle), config, name="c1", notify="@none")
    assert begins(notes, [*READ, *MACHINE, *SIZE, *CONTAINER])


def test_notes_of_a_joining_container_are_in_the_order_of_its_steps(host: Planner) -> None:
    config = config_of(host, more=COLD)
    _, notes = plan_container(load_bundle(host.bundle), config, ROOM, name="c2", notify="@none")
    assert begins(notes, [*READ, *COMES_TOO_LATE, *CONTAINER])


@pytest.mark.parametrize(
    ("vm", "more", "changes", "message", "expected"),
    [
        ("", "", {}, r"group 5 is missing", READ[:2]),
        ("", EMULATED, {"hawse.hugepages": "x"}, "annotations: hawse.hugepages", READ),
        ('hugepages = "1GB"\nmemory_mib = 4194304', EMULATED, {}, "takes 4096 huge pages of 1GB", READ),
        ('share = "virtiofs"', EMULATED, {}, "virtiofsd is not installed", [*READ, *MACHINE[:1]]),
        ('confine = "required"', EMULATED, {}, "QEMU cannot be confined", [*READ, *MACHINE[:2]]),
        ("overhead_mib = 1", EMULATED, {}, "vm.overhead_mib is 1", [*READ, *MACHINE]),
    ],
)
def test_failure_has_the_notes_of_the_steps_before_it(
    host: Planner, vm: str, more: str, changes: dict[str, str], message: str, expected: list[str]
) -> None:
    def changed(spec: dict[str, Any]) -> None:
        change(spec)
        spec["annotations"] = changes
        if not more:
            spec["linux"]["resources"]["devices"] = [{"allow": False, "access": "rwm"}]

    host.write(changed)
    lines = "" if "confine" in vm else 'confine = "auto"\n'
    config = host.load(host.config(vm=f"{lines}{vm}", more=more))
    with pytest.raises(HawseError, match=message) as caught:
        plan_sandbox(load_bundle(host.bundle), config, name="c1")
    assert begins(caught.value.notes, expected)


@pytest.mark.parametrize(
    ("room", "limit", "message", "expected"),
    [
        (Room(spares=[], memory_mib=1024), 0, "no spare port is left", [*READ[:2], *COMES_TOO_LATE]),
        (ROOM, 900 * MIB, "900 MiB are more than", [*READ, *COMES_TOO_LATE, *CONTAINER[:2]]),
    ],
)
def test_failure_of_a_joining_container_has_the_notes_before_it(
    host: Planner, room: Room, limit: int, message: str, expected: list[str]
) -> None:
    def changed(spec: dict[str, Any]) -> None:
        change(spec)
        if limit:
            spec["linux"]["resources"]["memory"] = {"limit": limit}
        else:
            spec["linux"]["resources"]["devices"] = []
            del spec["linux"]["devices"][-1]

    host.write(changed)
    with pytest.raises(HawseError, match=message) as caught:
        plan_container(load_bundle(host.bundle), config_of(host, more=COLD), room, name="c2")
    assert begins(caught.value.notes, expected)
