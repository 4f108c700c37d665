"""Plugging VFIO functions into the running guest and taking them out again."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from hawse.errors import DeviceError, RefusedError, VmError
from hawse.json_text import Document
from hawse.monitor.agent.answers import BoundFunction, NativeFunction
from hawse.monitor.agent.calls import Answer, BindNative, BindVfio, Call, RescanBridge
from hawse.monitor.agent.guest_link import GuestLink
from hawse.monitor.devices.device_map import Files, Groups, GuestGroup, Place
from hawse.plan.model import PlugStep
from hawse.vfio import interrupts
from hawse.vfio.host import dma_mappings
from hawse.vfio.node import IOMMU_PATH
from hawse.vm import nvme_disks
from hawse.vm.arguments import ADD_DISK

if TYPE_CHECKING:
    from hawse.vm.qmp import Events, Qmp

_QMP_SECONDS = 30.0
_MARGIN = 5.0
_UNPLUG_SECONDS = 5.0
#: What beside a device is made for it, the command that unmakes it, and by which argument.
_UNDONE_BY = {
    "netdev_add": ("netdev_del", "id"),
    "object-add": ("object-del", "id"),
    "blockdev-add": ("blockdev-del", "node-name"),
    ADD_DISK: ("remove-fd", "fdset-id"),
}
Arrived = TypeVar("Arrived")


async def attach(plugs: Sequence[PlugStep], qmp: Qmp, link: GuestLink, *, seconds: float) -> tuple[Groups, Files]:
    """Plug everything and have VFIO take it; what became of the groups, and of the functions' device files.

    Raises :class:`DeviceError` naming the device.
    """
    functions = await arrive(plugs, qmp, [_bound(plug, link, seconds) for plug in plugs], seconds=seconds)
    for group in {plug.group for plug, function in zip(plugs, functions, strict=True) if _without_room(plug, function)}:
        members = [index for index, plug in enumerate(plugs) if plug.group == group]
        if len(members) > 1:
            # Behind a bridge, whose windows the guest's kernel has made when it was empty.
            await link.call(RescanBridge(address=plugs[members[0]].guest_address), seconds=seconds + _MARGIN)
            again = await asyncio.gather(*(_bound(plugs[index], link, seconds) for index in members))
            for index, function in zip(members, again, strict=True):
                functions[index] = function
        for index in members:
            _check_room(plugs[index], functions[index])
    return _together(plugs, functions), _files(plugs, functions)


async def attach_native(
    plugs: Sequence[PlugStep], qmp: Qmp, link: GuestLink, *, container: str, seconds: float
) -> dict[str, NativeFunction]:
    """Plug everything and have the guest's own drivers take it; what stands for each function, by QEMU's name of it.

    Raises :class:`DeviceError` naming the device.
    """
    calls = [_driven(plug, link, container, seconds) for plug in plugs]
    functions = await arrive(plugs, qmp, calls, seconds=seconds)
    return {plug.device: function for plug, function in zip(plugs, functions, strict=True)}


async def arrive(
    plugs: Sequence[PlugStep], qmp: Qmp, calls: Sequence[Coroutine[Any, Any, Arrived]], *, seconds: float
) -> list[Arrived]:
    """Plug everything; the answers to the calls, of which each waits for one function in the guest.

    All waits in the guest begin before the first device is plugged.
    """
    waits = [asyncio.create_task(call) for call in calls]
    with qmp.listen("DEVICE_DELETED") as events:
        lost = asyncio.create_task(_lost(plugs, events, seconds))
        try:
            for plug in plugs:
                if not (plug.cold or plug.shared):
                    await _plug(plug, qmp)
            arrived = asyncio.gather(*waits)
            # Where it is given up, nobody awaits it, and asyncio would tell of that.
            arrived.add_done_callback(lambda future: future.cancelled() or future.exception())
            ends: list[asyncio.Future[Any]] = [lost, arrived]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if not arrived.done() and (gone := lost.result()) is not None:
                # A guest that takes the hotplug's signal for an unplug's would else be waited for in vain.
                raise DeviceError(
                    f"{gone.what}: the guest unplugged it as soon as it was plugged",
                    hint="its console log has the reason; try again",
                )
            return await arrived
        finally:
            for task in (*waits, lost):
                task.cancel()
            await asyncio.gather(*waits, lost, return_exceptions=True)


async def _plug(plug: PlugStep, qmp: Qmp) -> None:
    dma_mappings.try_to_raise([plug.dma_entries])
    if plug.host:
        # Once more: the module whose parameter decides may have been loaded by the binding.
        interrupts.check(plug.group, [plug.host], accepted=plug.unsafe_interrupts)
        qmp.nodes.admit(plug.host, by_file=plug.by_file)
    for command, arguments in plug.commands:
        try:
            if command == ADD_DISK:
                await _add_disk(plug, qmp, arguments)
            else:
                await qmp.execute(command, arguments, timeout=_QMP_SECONDS)
        except VmError as error:
            raise DeviceError(f"{plug.what}: QEMU refuses it: {error.message}", hint=error.hint) from None


async def _add_disk(plug: PlugStep, qmp: Qmp, arguments: Document) -> None:
    try:
        disk = nvme_disks.make()
    except OSError as error:
        raise DeviceError(f"{plug.label} of group {plug.group}: cannot make its disk: {error.strerror}") from None
    try:
        await qmp.add(disk, arguments, timeout=_QMP_SECONDS)
    finally:
        os.close(disk)


async def _lost(plugs: Sequence[PlugStep], events: Events, seconds: float) -> PlugStep | None:
    """The first of the functions that is gone again; None at the deadline."""
    by_name = {plug.device: plug for plug in plugs}
    data = await events.wait(lambda data: data.get("device") in by_name, seconds=seconds + _MARGIN)
    return by_name[str(data["device"])] if data else None


def _together(plugs: Sequence[PlugStep], functions: Sequence[BoundFunction]) -> Groups:
    """Each group's place in the guest. Raises :class:`DeviceError` where the guest has divided one, or joined two."""
    groups: Groups = {}
    hosts: dict[int, int] = {}
    for plug, function in zip(plugs, functions, strict=True):
        group = GuestGroup(function.group, function.major, function.minor)
        if groups.setdefault(plug.group, group) != group:
            raise DeviceError(
                f"{plug.label}: in the guest's group {group.number}, others of host group {plug.group} are in "
                f"{groups[plug.group].number}",
                hint="its console log has the groups that the guest's IOMMU makes",
            )
        if (other := hosts.setdefault(group.number, plug.group)) != plug.group:
            raise DeviceError(
                f"{plug.label} of host group {plug.group}: in the guest's group {group.number}, as is host group "
                f"{other}",
                hint="its console log has the groups that the guest's IOMMU makes",
            )
    return groups


async def release(plugs: Sequence[PlugStep], qmp: Qmp) -> None:
    """Unplug what is plugged, as far as the guest lets go soon; the end of QEMU releases what it keeps."""
    with suppress(VmError):
        await unplug(plugs, qmp, seconds=_UNPLUG_SECONDS)


async def unplug(plugs: Sequence[PlugStep], qmp: Qmp, *, seconds: float) -> list[PlugStep]:
    """Take functions out of the guest; those that it has not let go after ``seconds``.

    QEMU only asks the guest, which may miss it or refuse (QEMU qapi/qdev.json, device_del, DEVICE_UNPLUG_GUEST_ERROR):
    it is asked again every few seconds. Raises :class:`VmError` when QEMU does not answer.
    """
    left = {plug.device: plug for plug in plugs}
    deadline = asyncio.get_running_loop().time() + seconds

    def deleted(data: Document) -> bool:
        left.pop(str(data.get("device")), None)
        return not left

    with qmp.listen("DEVICE_DELETED") as events:
        while left and (rest := deadline - asyncio.get_running_loop().time()) > 0:
            for name in list(left):
                try:
                    await qmp.execute("device_del", {"id": name}, timeout=_QMP_SECONDS)
                except RefusedError as error:
                    # It never came, or went before we listened; else it is "in the process of unplug" already.
                    if "not found" in error.message:
                        del left[name]
            if left:
                await events.wait(deleted, seconds=min(rest, _UNPLUG_SECONDS))
        for plug in plugs:
            if plug.host and plug.device not in left:
                qmp.nodes.dismiss(plug.host)
            for command, arguments in reversed(plug.commands):
                if command in _UNDONE_BY and plug.device not in left:
                    undo, key = _UNDONE_BY[command]
                    # Refused where it was never made, and an iommufd while another function of its group is left.
                    with suppress(RefusedError):
                        await qmp.execute(undo, {key: arguments[key]}, timeout=_QMP_SECONDS)
    return list(left.values())


async def _bound(plug: PlugStep, link: GuestLink, seconds: float) -> BoundFunction:
    return await _bind(plug, link, BindVfio(address=plug.guest_address, seconds=seconds), seconds)


async def _driven(plug: PlugStep, link: GuestLink, container: str, seconds: float) -> NativeFunction:
    call = BindNative(address=plug.guest_address, container=container, seconds=seconds)
    return await _bind(plug, link, call, seconds)


async def _bind(plug: PlugStep, link: GuestLink, call: Call[Answer], seconds: float) -> Answer:
    try:
        return await link.call(call, seconds=seconds + _MARGIN)
    except DeviceError as error:
        raise DeviceError(
            f"{plug.label} of group {plug.group}, in the guest {error.message}",
            hint=error.hint,
            evidence=error.evidence,
        ) from None


def _files(plugs: Sequence[PlugStep], functions: Sequence[BoundFunction]) -> Files:
    files: Files = {}
    for plug, function in zip(plugs, functions, strict=True):
        file, iommu = function.file, function.iommu
        if file is not None and iommu is not None:
            files[plug.device] = Place(f"/dev/vfio/devices/vfio{file.number}", file.major, file.minor)
            files[""] = Place(IOMMU_PATH, iommu.major, iommu.minor)
    return files


def _without_room(plug: PlugStep, function: BoundFunction) -> list[tuple[int, int]]:
    """The BARs that a function has on the host, and the guest found no room for: number and bytes of each."""
    bars = function.bars
    return [(number, size) for number, size in plug.bars if number >= len(bars) or not bars[number]]


def _check_room(plug: PlugStep, function: BoundFunction) -> None:
    for number, size in _without_room(plug, function):
        raise DeviceError(
            f"{plug.label} of group {plug.group}: the guest has no room for its BAR {number} of {size} bytes",
            hint="its console log has the windows of its ports; pass the group in a sandbox alone",
        )
