"""Functions are plugged into the guest and unplugged, within time limits, and QEMU keeps nothing of them."""

from __future__ import annotations

import asyncio
import re
from contextlib import nullcontext
from typing import Any

import pytest

from hawse.errors import DeviceError, RefusedError, VmError
from hawse.monitor.devices import hotplug
from hawse.planner.devices.plugs import plug_steps, shape
from hawse.vfio.groups import Bar, Function, HostGroup
from hawse.vfio.node import group_node
from hawse.vm.ports import MIB, plan_ports
from tests.support import virtual_time
from tests.support.fake_qmp import FakeLink, FakeQmp, fails_at
from tests.support.groups import BOUND, EDU, NICS, plan


def test_device_that_is_unplugged_during_its_hotplug_is_an_error() -> None:
    """A guest took the signal of the hotplug for that of an unplug. The monitor does not wait for a removed device."""

    async def story() -> None:
        qmp = FakeQmp()
        link = FakeLink({"bind_vfio": BOUND})

        async def never(*_: object, **__: object) -> Any:
            await asyncio.sleep(3600)

        link.call = never  # type: ignore[method-assign]
        steps = plan(EDU).container.plugs
        waiting = asyncio.create_task(hotplug.attach(steps, [], qmp, link, seconds=5))  # type: ignore[arg-type]
        while not qmp.plugged:
            await asyncio.sleep(0)
        qmp.drop("vfio-5-0")
        with pytest.raises(DeviceError, match="the guest unplugged it as soon as it was plugged"):
            await waiting

    virtual_time.run(story())


@pytest.mark.parametrize(
    ("patience", "seconds", "asked", "left"), [(1, 12, 1, 0), (2, 12, 2, 0), (3, 12, 3, 0), (3, 9, 2, 2), (9, 3, 1, 2)]
)
def test_detach_asks_the_guest_again_until_its_deadline(patience: int, seconds: float, asked: int, left: int) -> None:
    """Every five seconds, until the deadline; the back ends of functions that are gone are removed in reverse order."""

    async def story() -> None:
        qmp = FakeQmp(patience=patience)
        steps = plan(NICS).container.plugs
        qmp.plugged = {step.device for step in steps}
        began = asyncio.get_running_loop().time()
        removed = await hotplug.unplug(steps, qmp, seconds=seconds)  # type: ignore[arg-type]
        took = asyncio.get_running_loop().time() - began
        assert [command for command, _ in qmp.commands].count("device_del") == 2 * asked
        assert len(removed) == left
        backends = [] if left else ["net-vfio-7-1", "net-vfio-7-0"]
        assert [name for command, name in qmp.commands if command == "netdev_del"] == backends
        assert (seconds if left else 5 * (asked - 1)) <= took < seconds + 1

    virtual_time.run(story())


ROOM, NONE = BOUND | {"bars": [0, 0, 8 * MIB]}, BOUND | {"bars": [0, 0, 0]}
RESCANNED = ["bind_vfio", "bind_vfio", "rescan_bridge", "bind_vfio", "bind_vfio"]


@pytest.mark.parametrize(
    ("functions", "answers", "calls", "words"),
    [
        (2, [ROOM, ROOM], ["bind_vfio", "bind_vfio"], ""),
        (2, [ROOM, NONE, ROOM, ROOM], RESCANNED, ""),
        (2, [ROOM, BOUND, ROOM, NONE], RESCANNED, "0000:3b:00.1 of group 12: the guest has no space for"),
        (1, [NONE], ["bind_vfio"], "0000:3b:00.0 of group 12: the guest has no space for its BAR 2 of 8388608 bytes"),
    ],
)  # fmt: skip
def test_bar_without_address_space_is_an_error_after_a_rescan_of_its_bridge(
    functions: int, answers: list[Any], calls: list[str], words: str
) -> None:
    async def story() -> None:
        bars = (Bar(2, 8 * MIB, False, True, True),)
        members = tuple(Function(f"0000:3b:00.{n}", 1, 1, 0x020000, "vfio-pci", bars) for n in range(functions))
        group = HostGroup(12, members)
        steps = plug_steps([group], plan_ports([shape(group)]).slots, owner="c1")
        link = FakeLink({"bind_vfio": list(answers), "rescan_bridge": None})
        with pytest.raises(DeviceError, match=re.escape(words)) if words else nullcontext():
            await hotplug.attach(steps, [], FakeQmp(), link, seconds=1)  # type: ignore[arg-type]
        assert [method for method, _ in link.calls] == calls

    virtual_time.run(story())


@pytest.mark.parametrize("number", range(3))
def test_iommufd_is_deleted_with_its_last_function(number: int) -> None:
    """Whichever command fails; the iommufd is also removed by a detach."""

    async def story() -> None:
        pair = HostGroup(12, tuple(Function(f"0000:3b:00.{n}", 1, 1, 0x020000, "vfio-pci", ()) for n in (0, 1)))
        steps = plug_steps([pair], plan_ports([shape(pair)]).slots, owner="c1", by_file={12})
        qmp = FakeQmp(refuse=fails_at(number, RefusedError("no")))
        with pytest.raises(DeviceError):
            await hotplug.attach(steps, [], qmp, FakeLink({"bind_vfio": BOUND}), seconds=1)  # type: ignore[arg-type]
        await hotplug.unplug(steps, qmp, seconds=1)  # type: ignore[arg-type]
        assert qmp.plugged == set()
        assert qmp.commands[-1] == ("object-del", "iommufd-12")

    virtual_time.run(story())


@pytest.mark.parametrize(
    ("bars", "room"), [([0, 0, 1], True), ([0, 0, 0], False), ([1, 1], False), ([0, 0, 1, 0], True)]
)
def test_bar_needs_an_address_in_the_guest(bars: list[int], room: bool) -> None:
    async def story() -> None:
        group = HostGroup(
            12, (Function("0000:3b:00.0", 1, 1, 0x020000, "vfio-pci", (Bar(2, MIB, False, True, True),)),)
        )
        steps = plug_steps([group], plan_ports([shape(group)]).slots, owner="c1")
        link = FakeLink({"bind_vfio": BOUND | {"bars": bars}})
        if room:
            await hotplug.attach(steps, [], FakeQmp(), link, seconds=1)  # type: ignore[arg-type]
        else:
            with pytest.raises(DeviceError, match="no space for its BAR 2 of 1048576 bytes"):
                await hotplug.attach(steps, [], FakeQmp(), link, seconds=1)  # type: ignore[arg-type]

    virtual_time.run(story())


def test_only_the_bridge_of_a_group_without_room_is_scanned_again() -> None:
    async def story() -> None:
        bars = (Bar(0, MIB, False, True, True),)
        groups = [
            HostGroup(n, tuple(Function(f"0000:{n}:00.{f}", 1, 1, 0x020000, "vfio-pci", bars) for f in (0, 1)))
            for n in (12, 13)
        ]
        steps = plug_steps(groups, plan_ports([shape(group) for group in groups]).slots, owner="c1")
        placed, none = BOUND | {"bars": [MIB]}, BOUND | {"group": 4, "bars": [0]}
        link = FakeLink(
            {"bind_vfio": [placed, placed, none, none, *[none | {"bars": [MIB]}] * 2], "rescan_bridge": None}
        )
        nodes = [group_node(12), group_node(13)]
        located = await hotplug.attach(steps, nodes, FakeQmp(), link, seconds=1)  # type: ignore[arg-type]
        assert [node.guest_group for node in located] == [3, 4]
        again = steps[2].guest_address
        assert [params for method, params in link.calls if method == "rescan_bridge"] == [{"address": again}]
        bound = [params["address"] for method, params in link.calls if method == "bind_vfio"]
        assert bound[4:] == [step.guest_address for step in steps[2:]]

    virtual_time.run(story())


def test_release_at_the_end_of_the_vm_ignores_what_stays() -> None:
    """Devices that the guest keeps end with QEMU. A QEMU that does not answer is not an error then."""

    async def story() -> None:
        for patience, left in ((1, set()), (9, {"vfio-5-0"})):
            qmp = FakeQmp(patience=patience)
            qmp.plugged = {"vfio-5-0"}
            await hotplug.release(plan(EDU).container.plugs, qmp)  # type: ignore[arg-type]
            assert qmp.plugged == left
        await hotplug.release(plan(EDU).container.plugs, FakeQmp(refuse=lambda *_: VmError("gone")))  # type: ignore[arg-type]

    virtual_time.run(story())
