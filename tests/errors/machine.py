"""Errors of QEMU, its ports, its helpers, and of devices in the guest."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qemu.qmp import Message

from hawse.agent.devices.guest_drivers import bind_native
from hawse.agent.devices.hardware import bind_vfio
from hawse.agent.system.uevents import Uevents
from hawse.config import Config, Vm
from hawse.errors import HawseError, RefusedError, VmError, from_wire
from hawse.host.cgroup.control_cgroup import ControlCgroup
from hawse.jail import users
from hawse.linux import oom_score
from hawse.linux.processes import open_process
from hawse.monitor.devices import hotplug
from hawse.monitor.devices.attachments import Attachments
from hawse.monitor.devices.claims import Claims
from hawse.monitor.machine.qemu_warnings import QemuWarnings
from hawse.planner.confinement import plan_jail
from hawse.planner.devices.plugs import plug_steps, shape
from hawse.vfio.emulated import EmulatedGroup
from hawse.vfio.groups import Bar, Function, HostGroup
from hawse.vm import virtiofsd
from hawse.vm.acceleration import choose
from hawse.vm.ports import MIB, FunctionShape, GroupShape, Port, place, plan_ports
from hawse.vm.qemu_features import Capabilities
from hawse.vm.qmp import MOST_EVENTS, Qmp
from tests.errors.situation import Act
from tests.support.fake_qmp import FakeLink, FakeQmp
from tests.support.forked import in_child
from tests.support.groups import BOUND, EDU, NICS, attachment, plan
from tests.support.sysfs import FakeSysfs

PORTS = [Port("port2", 4, True, 2 * MIB, 2 * MIB)]


def without_kvm(host: FakeSysfs) -> Any:
    return choose("kvm", qemu="/usr/bin/true", kernel="", initrd="", directory="/none", device=f"{host.root}/dev/kvm")


def shapes(count: int, *, functions: int = 1, emulated: bool = False, **sizes: Any) -> Act:
    """The port plan of this number of groups."""
    groups = [GroupShape(n + 1, (FunctionShape(**sizes),) * functions, emulated) for n in range(count)]
    return lambda _host: plan_ports(groups)


def later(spares: list[Port], *, functions: int = 1, **sizes: Any) -> Act:
    """A group is attached to a running VM with these free ports."""
    return lambda _host: place(GroupShape(7, (FunctionShape(**sizes),) * functions), spares)


def in_guest(*, driver: str = "vfio-pci", there: bool = True, group: bool = True) -> Act:
    """The agent's view of a function that was plugged."""

    def act(guest: FakeSysfs) -> Any:
        guest.write("sys/bus/pci/drivers_probe", "")
        if there:
            guest.function("0000:02:00.0", group=6, driver=driver)
        if not group:
            os.unlink(f"{guest.root}/sys/bus/pci/devices/0000:02:00.0/iommu_group")
        uevents = Uevents()
        try:
            return bind_vfio(uevents, "0000:02:00.0", seconds=0.2, root=guest.root)
        finally:
            uevents.close()

    return act


def left_to_the_guest(guest: FakeSysfs) -> Any:
    """Mode guest-kernel, and a guest without a driver for the device."""
    guest.write("sys/bus/pci/drivers_probe", "")
    guest.function("0000:02:00.0", group=6, driver="")
    guest.write("drivers/modules.dep", "")
    uevents = Uevents()
    try:
        return bind_native(uevents, "0000:02:00.0", drivers=f"{guest.root}/drivers", seconds=0.2, root=guest.root)
    finally:
        uevents.close()


def claimed_twice(_host: FakeSysfs) -> Any:
    """Two containers of one VM request the same group."""
    attachment = plan(EDU)
    claims = Claims(attachment.ports)
    claims.claim(attachment.container.plugs, owner="one")
    return claims.claim(attachment.container.plugs, owner="two")


def running(qmp: FakeQmp, answers: dict[str, Any], *groups: EmulatedGroup, then: Callable[[Attachments], Any]) -> Act:
    """A running sandbox whose QEMU and guest answer as given; ``then`` is called with its attachments."""

    async def story() -> Any:
        plan_of_groups = plan(*groups, seconds=0.1)
        attachments = Attachments(plan_of_groups.container, Claims(plan_of_groups.ports), seconds=0.1)
        link = FakeLink({"bind_vfio": BOUND, "add_nodes": None, "remove_nodes": None} | answers)
        await attachments.begin(qmp, link)  # type: ignore[arg-type]
        return await then(attachments)

    return lambda _host: asyncio.run(story())


def attach_nics(attachments: Attachments) -> Any:
    return attachments.attach(attachment(NICS, Claims(plan().ports).spares))


def refuse(_command: str, _arguments: dict[str, Any]) -> HawseError:
    return RefusedError("device_add: vfio 0000:3b:00.0: failed to open /dev/vfio/7: Device or resource busy")


def without_room(_host: FakeSysfs) -> Any:
    """A guest whose kernel has not assigned any of a function's BARs."""
    bars = (Bar(2, 8 * MIB, False, True, True),)
    group = HostGroup(7, (Function("0000:3b:00.0", 1, 1, 0x020000, "vfio-pci", bars),))
    steps = plug_steps([group], plan_ports([shape(group)]).slots, owner="c1")
    link = FakeLink({"bind_vfio": BOUND | {"bars": [0] * 6}})
    return asyncio.run(hotplug.attach(steps, [], FakeQmp(), link, seconds=0.1))  # type: ignore[arg-type]


def unconfined(_host: FakeSysfs) -> None:
    plan_jail(Config(vm=Vm(confine="required", share="9p")), share="9p", filters=True)


def without_user_ids(host: FakeSysfs) -> None:
    """Another process has locked every id of the range."""
    first, count, path = 1879048192, 16, f"{host.root}/users"

    def act() -> Any:
        try:
            users.take(first, first + count - 1, name="c1", path=path)
        except HawseError as error:
            return error.to_wire()
        return None

    with open(path, "wb") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, count, first)
        raise from_wire(in_child(act))


def without_control(host: FakeSysfs) -> str:
    """A file exists at the path of the cgroup."""
    mount = Path(host.root, "sys/fs/cgroup")
    (mount / "c1").mkdir(parents=True)
    (mount / "hawse.control").write_text("")
    Path(host.root, "mountinfo").write_text(f"30 23 0:26 / {mount} rw - cgroup2 cgroup2 rw\n")
    control = ControlCgroup("/c1", host.root, mountinfo=f"{host.root}/mountinfo")
    [text] = control.enter([open_process(os.getpid())])
    return text


def flooded(_host: FakeSysfs) -> None:
    async def flood() -> None:
        errors: list[VmError] = []
        qmp = Qmp(on_flood=errors.append)
        for _ in range(MOST_EVENTS + 1):
            qmp._take(Message({"event": "ACPI_DEVICE_OST"}))
        raise errors[0]

    asyncio.run(flood())


def stopped_by_kvm(_host: FakeSysfs) -> Any:
    qemu_warnings = QemuWarnings(lambda _line: None, lambda _error: None)
    qemu_warnings.feed(b"KVM internal error. Suberror: 1\nemulation failure\nRAX=0000000000000000\n")
    raise qemu_warnings.stop_error("internal-error")


SITUATIONS: dict[str, Act] = {
    "KVM is required and cannot be used": without_kvm,
    "QEMU is to be confined and cannot be": unconfined,
    "Other sandboxes use all user ids for QEMU": without_user_ids,
    "The files are shared by 9p (a warning)": lambda _host: virtiofsd.MISSING,
    "The files are shared by 9p, by a QEMU before 9.2.1 (a warning)": lambda _host: virtiofsd.NO_SPECIAL_FILES.format(
        "7.2.0"
    ),
    "virtiofsd cannot keep its capabilities (a warning)": lambda _host: virtiofsd.FEW_RIGHTS,
    "The VM cannot have the container's `oomScoreAdj` on the host (a warning)": (
        lambda _host: oom_score.warning(-500, 0)
    ),
    "The sandbox's share of CPU time limits its monitor (a warning)": without_control,
    "QEMU lacks the device model": lambda _host: Capabilities("7.2.0", frozenset(), frozenset()).require("igb"),
    "A VM has fewer ports than there are groups": shapes(127),
    "More groups have I/O BARs than a VM has I/O windows": shapes(11, io=32),
    "32-bit BARs exceed the space below 4 GiB": shapes(4, memory=(256 * MIB,)),
    "A group has more functions than a bridge has slots": shapes(1, functions=32),
    "An emulated group has more functions than a slot": shapes(1, functions=9, emulated=True),
    "A group is attached, and no port is free": later([]),
    "A group is attached, and no free port is large enough": later(PORTS, prefetchable=(8192 * MIB,)),
    "A group of several functions is attached": later(PORTS, functions=2),
    "Two containers of one VM request the same group": claimed_twice,
    "A group is attached twice": running(FakeQmp(), {}, NICS, then=attach_nics),
    "A group to detach is not attached": running(FakeQmp(), {}, EDU, then=lambda a: a.detach(9, force=False)),
    "QEMU refuses a device": running(FakeQmp(refuse=refuse), {}, EDU, then=attach_nics),
    "A device does not appear in the guest": in_guest(there=False),
    "A device cannot be bound to vfio-pci in the guest": in_guest(driver=""),
    "A device has no IOMMU group in the guest": in_guest(group=False),
    "A device's group has no node in the guest": in_guest(),
    "A device is for the guest kernel, which has no driver for it": left_to_the_guest,
    "A group of the host is several groups in the guest": running(
        FakeQmp(), {"bind_vfio": [BOUND, BOUND | {"group": 4}]}, NICS, then=attach_nics
    ),
    "The guest kernel cannot assign a device's BAR": without_room,
    "The guest's answer is invalid": running(FakeQmp(), {"bind_vfio": {"group": "../3"}}, EDU, then=attach_nics),
    "A program in the guest floods QEMU with events": flooded,
    "KVM fails while a guest runs": stopped_by_kvm,
    "The guest does not release a device": running(
        FakeQmp(patience=10**9), {}, EDU, then=lambda a: a.detach(5, force=False)
    ),
}  # fmt: skip
