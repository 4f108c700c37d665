"""Plugging disks, with a failure at each step; disks that containers share; and the disks that the agent finds."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hawse.agent.devices import disks as agent
from hawse.agent.devices import misc_devices
from hawse.agent.system.uevents import Uevents
from hawse.errors import DeviceError, HawseError, RefusedError, VmError
from hawse.monitor.agent.answers import DeviceNumbers
from hawse.monitor.agent.calls import BindDisk, MiscNumbers, read_answer
from hawse.monitor.devices.claims import Claims
from hawse.monitor.devices.disks import Disks
from hawse.monitor.devices.misc_devices import guest_numbers
from hawse.plan.capacity import Room
from hawse.plan.model import DiskPlan
from hawse.vm.ports import plan_ports
from tests.support import virtual_time
from tests.support.async_wait import until
from tests.support.fake_qmp import FakeLink, FakeQmp
from tests.support.sysfs import FakeSysfs

SDB = DiskPlan(major=8, minor=16, name="sdb", writable=True, logical=512, physical=4096)
SDC = DiskPlan(major=8, minor=32, name="a-very-long-name-of-a-device", writable=False)

#: The guest's answers for its disks.
VDA, VDB, VDC = ({"major": 254, "minor": minor} for minor in (0, 16, 32))


class Box:
    """The disks of a VM. ``opened``: the devices of the host that were opened, with their modes."""

    def __init__(self, qmp: FakeQmp, answers: object, *, ports: int = 4) -> None:
        self.qmp = qmp
        self.link = FakeLink({"bind_disk": answers})
        self.claims = Claims(plan_ports([]).ports[:ports])
        self.opened: list[tuple[int, int, bool]] = []
        self.descriptors: list[int] = []
        self.opener: Callable[..., int] = self.open_null
        self.disks = Disks(self.claims, seconds=2, open_device=lambda *numbers, **mode: self.opener(*numbers, **mode))

    def open_null(self, major: int, minor: int, *, writable: bool) -> int:
        self.opened.append((major, minor, writable))
        fd = os.open("/dev/null", os.O_RDWR)
        self.descriptors.append(fd)
        return fd

    async def attach(self, *disks: DiskPlan, owner: str = "c1") -> dict[tuple[int, int], tuple[int, int]]:
        return await self.disks.attach(disks, owner=owner, qmp=self.qmp, link=self.link)  # type: ignore[arg-type]

    async def detach(self, owner: str = "c1") -> None:
        await self.disks.detach(owner=owner, qmp=self.qmp)  # type: ignore[arg-type]

    def prove_empty(self) -> None:
        assert (self.qmp.plugged, self.qmp.sets, self.disks.plugged) == (set(), {}, [])
        assert len(self.claims.spares) == 4
        for fd in self.descriptors:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(fd)


def is_open(fd: int) -> bool:
    return os.path.exists(f"/proc/self/fd/{fd}")


def run(story: Callable[[], Awaitable[None]]) -> None:
    virtual_time.run(story())  # type: ignore[arg-type]


def test_disks_are_plugged_and_unplugged() -> None:
    async def story() -> None:
        box = Box(FakeQmp(), [VDA, VDB])
        assert await box.attach(SDB, SDC) == {(8, 16): (254, 0), (8, 32): (254, 16)}
        assert box.opened == [(8, 16, True), (8, 32, False)]
        assert box.link.calls[0] == ("bind_disk", {"address": "0000:02:00.0", "seconds": 2})
        sent = [arguments for command, arguments in box.qmp.sent if command == "blockdev-add"]
        assert [entry["read-only"] for entry in sent] == [False, True]
        assert all(entry["filename"] == f"/dev/fdset/{n}" for n, entry in enumerate(sent, 1 << 16))
        assert all(entry["cache"] == {"direct": True} and entry["driver"] == "host_device" for entry in sent)
        device, other = (arguments for command, arguments in box.qmp.sent if command == "device_add")
        assert (device["driver"], device["drive"], device["serial"]) == ("virtio-blk-pci", "disk-disk1", "sdb")
        assert (device["logical_block_size"], device["physical_block_size"]) == (512, 4096)
        assert (device["werror"], device["rerror"]) == ("report", "report")
        assert len(other["serial"]) == 20
        assert box.qmp.sets == {65536: 1, 65537: 1}
        await box.detach()
        box.prove_empty()

    run(story)


def test_containers_share_a_disk() -> None:
    async def story() -> None:
        box = Box(FakeQmp(), [VDA, VDB, VDC])
        first = await box.attach(SDB)
        reader = msgspec.structs.replace(SDB, writable=False)
        assert await box.attach(reader, owner="c2") == first, "a writable disk can be shared with a reader"
        assert len(box.opened) == 1
        await box.detach("c1")
        assert box.qmp.plugged == {"disk1"}
        await box.attach(SDC, owner="c2")
        writer = msgspec.structs.replace(SDC, writable=True)
        assert await box.attach(writer, owner="c3") == {(8, 32): (254, 32)}, (
            "a read-only disk cannot be shared with a writer"
        )
        await box.detach("c2")
        await box.detach("c3")
        box.prove_empty()

    run(story)


@pytest.mark.parametrize("command", ["add-fd", "blockdev-add", "device_add"])
@pytest.mark.parametrize("kind", [RefusedError, VmError])
def test_failed_command_undoes_the_earlier_ones(command: str, kind: type[HawseError]) -> None:
    async def story() -> None:
        failing = [True]
        qmp = FakeQmp(refuse=lambda name, _: kind(f"{name}: no") if failing and name == command else None)
        box = Box(qmp, [VDA, VDB])
        with pytest.raises(HawseError, match=f"{command}: no"):
            await box.attach(SDB)
        box.prove_empty()
        failing.clear()
        await box.attach(SDB)

    run(story)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (DeviceError("0000:02:00.0: no disk appeared", hint="x"), r"block device sdb \(8:16\), in the guest 0000:02"),
        (VmError("the guest closed the link"), "closed the link"),
        ("254:0", "bind_disk is unusable: Expected `object`, got `str`"),
        ([[254, 0]], "bind_disk is unusable: Expected `object`, got `array`"),
        ({"major": 254}, "bind_disk is unusable: Object missing required field `minor`"),
        (VDA | {"minor": 2**20}, "bind_disk is unusable: minor: Expected `int` <= 1048575"),
        (VDA | {"minor": 2**70}, "bind_disk is unusable: minor: Expected `int` <= 1048575"),
        (VDA | {"major": -1}, "bind_disk is unusable: major: Expected `int` >= 0"),
        (VDA | {"major": True}, "bind_disk is unusable: major: Expected `int`, got `bool`"),
        ({"major": "254", "minor": "0"}, "bind_disk is unusable: major: Expected `int`, got `str`"),
    ],
)
def test_disk_is_unplugged_when_the_guest_fails(answer: Any, words: str) -> None:
    async def story() -> None:
        box = Box(FakeQmp(), answer)
        with pytest.raises(HawseError, match=words):
            await box.attach(SDB)
        box.prove_empty()

    run(story)


def test_device_that_the_host_cannot_open_is_an_error() -> None:
    async def story() -> None:
        box = Box(FakeQmp(), [VDA])

        def refuse(*_: int, **__: bool) -> int:
            raise OSError(30, "Read-only file system")

        box.opener = refuse
        with pytest.raises(
            DeviceError, match=r"sdb \(8:16\): the host cannot open it for writing: Read-only"
        ) as caught:
            await box.attach(SDB)
        assert caught.value.hint
        box.prove_empty()
        assert "device_add" not in [command for command, _ in box.qmp.sent]

    run(story)


def test_creation_cancelled_while_the_device_opens_leaves_no_descriptor() -> None:
    async def story() -> None:
        box = Box(FakeQmp(), [VDA])
        entered, gate = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        slow = box.open_null

        def wait(major: int, minor: int, *, writable: bool) -> int:
            loop.call_soon_threadsafe(entered.set)
            asyncio.run_coroutine_threadsafe(gate.wait(), loop).result()
            return slow(major, minor, writable=writable)

        box.opener = wait
        work = asyncio.create_task(box.attach(SDB))
        await entered.wait()
        work.cancel()
        await asyncio.wait([work])
        gate.set()
        await until(lambda: box.descriptors != [] and not is_open(box.descriptors[0]))
        box.prove_empty()

    asyncio.run(story())


def test_missing_port_is_an_error_and_ports_are_released() -> None:
    async def story() -> None:
        box = Box(FakeQmp(), [VDA, VDB], ports=1)
        await box.attach(SDB)
        with pytest.raises(DeviceError, match=r"a-very-long-name-of-a-device .*: no spare port is left"):
            await box.attach(SDC, owner="c2")
        await box.detach()
        await box.attach(SDC)

    run(story)


def test_disk_that_the_guest_keeps_stays_on_record() -> None:
    async def story() -> None:
        box = Box(FakeQmp(patience=1000), [VDA, VDB, {"major": 254, "minor": 32}])
        await box.attach(SDB)
        with pytest.raises(DeviceError, match=r"block device sdb \(8:16\): the guest does not release it within 2 s"):
            await box.detach()
        for _ in range(2):
            with pytest.raises(DeviceError, match="the guest does not release"):
                await box.detach()
            assert box.disks.keeps("c1")
            assert len(box.claims.spares) == 3
            assert box.disks.plugged == [], "a disk that the guest may release at any moment is not shared"
            for disk in (SDB, msgspec.structs.replace(SDB, writable=False)):
                with pytest.raises(DeviceError, match="the guest has not released it after container c1"):
                    await box.attach(disk, owner="c2")
        await box.detach("c2")
        await box.attach(SDC, owner="c2")
        box.qmp.patience = 1
        await box.attach(SDB, owner="c2")
        assert not box.disks.keeps("c1")
        await box.detach()
        await box.detach("c2")
        box.prove_empty()

    run(story)


@pytest.mark.parametrize(("disks", "groups", "fits"), [(0, 4, True), (2, 2, True), (3, 2, False), (1, 4, False)])
def test_container_that_joins_a_pod_needs_ports(disks: int, groups: int, fits: bool) -> None:
    room = Room(spares=list(plan_ports([]).ports), disks=[SDB])
    requests = [msgspec.structs.replace(SDC, minor=32 + n) for n in range(disks)]
    requests += [SDB, msgspec.structs.replace(SDB, writable=False)]
    if fits:
        room.check_disks(requests, groups=groups)
        return
    with pytest.raises(
        DeviceError, match=rf"{disks} block devices? needs? .*, and the virtual machine has {4 - groups} free"
    ):
        room.check_disks(requests, groups=groups)


@pytest.mark.parametrize(("disks", "ports"), [(0, 4), (4, 4), (5, 8), (9, 16), (60, 64)])
def test_vm_has_ports_for_its_disks(disks: int, ports: int) -> None:
    assert len(plan_ports([], disks=disks).ports) == ports


def test_more_disks_than_ports_are_an_error() -> None:
    with pytest.raises(DeviceError, match="0 VFIO groups and 127 block devices, and a virtual machine has 126 ports"):
        plan_ports([], disks=127)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ([[{"major": 10, "minor": 125}]], {(10, 126): (10, 125)}),
        ([[None]], "userfaultfd .10:126.: the guest's kernel has no such device"),
        ([[]], "the guest reports 0 numbers of 1 misc devices"),
        ([[None, None]], "the guest reports 2 numbers of 1 misc devices"),
        ([None], "misc_numbers is unusable: Expected `array`, got `null`"),
        ([[[10, 125]]], r"misc_numbers is unusable: \[0\]: Expected `object | null`, got `array`"),
        ([[{"major": 10}]], r"misc_numbers is unusable: \[0\]: Object missing required field `minor`"),
        ([[{"major": 10, "minor": 2**20}]], r"misc_numbers is unusable: \[0\].minor: Expected `int` <= 1048575"),
        ([[{"major": "10", "minor": 1}]], r"misc_numbers is unusable: \[0\].major: Expected `int`, got `str`"),
    ],
)
def test_numbers_of_misc_devices_are_those_of_the_guest(answer: Any, expected: Any) -> None:
    async def story() -> None:
        link = FakeLink({"misc_numbers": answer})
        if isinstance(expected, dict):
            assert await guest_numbers([(10, 126, "userfaultfd")], link) == expected  # type: ignore[arg-type]
            return
        with pytest.raises(HawseError, match=expected):
            await guest_numbers([(10, 126, "userfaultfd")], link)  # type: ignore[arg-type]

    run(story)


ADDRESS = "0000:02:00.0"


@pytest.fixture
def guest(tmp_path: Path) -> FakeSysfs:
    kernel = FakeSysfs(str(tmp_path))
    kernel.function(ADDRESS, group=1, driver="virtio-pci")
    kernel.write("sys/bus/pci/drivers_probe", "")
    return kernel


def bind(guest: FakeSysfs) -> dict[str, int]:
    uevents = Uevents()
    try:
        answer = agent.bind_disk(uevents, ADDRESS, seconds=0.3, root=guest.root)
        read_answer(BindDisk(address=ADDRESS, seconds=0.3), answer)
        return answer
    finally:
        uevents.close()


def test_agent_finds_the_disk_of_a_function(guest: FakeSysfs) -> None:
    guest.write(f"sys/bus/pci/devices/{ADDRESS}/virtio5/block/vda/dev", "254:0\n")
    guest.write(f"sys/bus/pci/devices/{ADDRESS}/virtio5/block/vda/vda1/dev", "254:1\n")
    assert bind(guest) == {"major": 254, "minor": 0}


def test_agent_names_a_function_without_a_disk(guest: FakeSysfs) -> None:
    guest.write(f"sys/bus/pci/devices/{ADDRESS}/virtio5/net/eth0/ifindex", "2\n")
    with pytest.raises(DeviceError, match=r"bound to virtio-pci, but no disk appeared within 0\.3 s"):
        bind(guest)


def test_agent_finds_misc_devices_by_their_names(guest: FakeSysfs) -> None:
    guest.write("sys/class/misc/userfaultfd/dev", "10:125\n")
    assert misc_devices.misc_numbers("userfaultfd", root=guest.root) == {"major": 10, "minor": 125}
    assert misc_devices.misc_numbers("ntsync", root=guest.root) is None
    answers = [misc_devices.misc_numbers(name, root=guest.root) for name in ("userfaultfd", "ntsync")]
    assert read_answer(MiscNumbers(names=[]), answers) == [DeviceNumbers(10, 125), None]
