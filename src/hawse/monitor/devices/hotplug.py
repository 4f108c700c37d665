"""Plug VFIO functions into the running guest, and unplug them."""

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
from hawse.monitor.devices.guest_nodes import locate
from hawse.plan.model import PlugStep
from hawse.vfio import interrupts
from hawse.vfio.host import dma_mappings
from hawse.vfio.node import VfioNode
from hawse.vm import nvme_disks
from hawse.vm.arguments import ADD_DISK

if TYPE_CHECKING:
    from hawse.vm.qmp import Events, Qmp

_QMP_SECONDS = 30.0
_MARGIN = 5.0
_UNPLUG_SECONDS = 5.0
#: Commands that create a device's backend, each with the command that removes it, and the argument of both.
_UNDONE_BY = {
    "netdev_add": ("netdev_del", "id"),
    "object-add": ("object-del", "id"),
    "blockdev-add": ("blockdev-del", "node-name"),
    ADD_DISK: ("remove-fd", "fdset-id"),
}
Result = TypeVar("Result")


async def attach(
    plugs: Sequence[PlugStep], nodes: Sequence[VfioNode], qmp: Qmp, link: GuestLink, *, seconds: float
) -> list[VfioNode]:
    """Plug functions, and bind them to vfio-pci in the guest. Returns ``nodes`` with paths and numbers in the guest.

    Raises :class:`DeviceError` naming the device.
    """
    functions = await plug_and_wait(plugs, qmp, [_bind_vfio(plug, link, seconds) for plug in plugs], seconds=seconds)
    for group in {plug.group for plug, function in zip(plugs, functions, strict=True) if _missing_bars(plug, function)}:
        members = [index for index, plug in enumerate(plugs) if plug.group == group]
        if len(members) > 1:
            # They are behind a bridge. The guest kernel sized its windows when the bridge was empty.
            await link.call(RescanBridge(address=plugs[members[0]].guest_address), seconds=seconds + _MARGIN)
            again = await asyncio.gather(*(_bind_vfio(plugs[index], link, seconds) for index in members))
            for index, function in zip(members, again, strict=True):
                functions[index] = function
        for index in members:
            _check_bars(plugs[index], functions[index])
    return locate(nodes, plugs, functions)


async def attach_native(
    plugs: Sequence[PlugStep], qmp: Qmp, link: GuestLink, *, container: str, seconds: float
) -> dict[str, NativeFunction]:
    """Plug functions, and bind them to drivers of the guest kernel. Returns each function's answer, by QEMU's id.

    Raises :class:`DeviceError` naming the device.
    """
    calls = [_bind_native(plug, link, container, seconds) for plug in plugs]
    functions = await plug_and_wait(plugs, qmp, calls, seconds=seconds)
    return {plug.device: function for plug, function in zip(plugs, functions, strict=True)}


async def plug_and_wait(
    plugs: Sequence[PlugStep], qmp: Qmp, calls: Sequence[Coroutine[Any, Any, Result]], *, seconds: float
) -> list[Result]:
    """Plug functions, and return the answers of ``calls``. Each call waits for one function in the guest.

    All calls start before the first device is plugged.
    """
    waits = [asyncio.create_task(call) for call in calls]
    with qmp.listen("DEVICE_DELETED") as events:
        early = asyncio.create_task(_unplugged_early(plugs, events, seconds))
        try:
            for plug in plugs:
                if not (plug.cold or plug.shared):
                    await _plug(plug, qmp)
            answers = asyncio.gather(*waits)
            # After a cancellation the result is not read, and asyncio would log its error.
            answers.add_done_callback(lambda future: future.cancelled() or future.exception())
            ends: list[asyncio.Future[Any]] = [early, answers]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if not answers.done() and (unplugged := early.result()) is not None:
                # A guest may mistake the signal of the hotplug for that of an unplug. It would never answer.
                raise DeviceError(
                    f"{unplugged.what}: the guest unplugged it as soon as it was plugged",
                    hint="try again; console.log shows why",
                )
            return await answers
        finally:
            for task in (*waits, early):
                task.cancel()
            await asyncio.gather(*waits, early, return_exceptions=True)


async def _plug(plug: PlugStep, qmp: Qmp) -> None:
    dma_mappings.try_to_raise([plug.dma_entries])
    if plug.host:
        # Check again: binding may have loaded the module whose parameter decides.
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


async def _unplugged_early(plugs: Sequence[PlugStep], events: Events, seconds: float) -> PlugStep | None:
    """Wait until the guest unplugs one of the functions, and return it; None at the deadline."""
    by_name = {plug.device: plug for plug in plugs}
    data = await events.wait(lambda data: data.get("device") in by_name, seconds=seconds + _MARGIN)
    return by_name[str(data["device"])] if data else None


async def release(plugs: Sequence[PlugStep], qmp: Qmp) -> None:
    """Unplug functions that the guest releases within 5 s. The end of QEMU releases the others."""
    with suppress(VmError):
        await unplug(plugs, qmp, seconds=_UNPLUG_SECONDS)


async def unplug(plugs: Sequence[PlugStep], qmp: Qmp, *, seconds: float) -> list[PlugStep]:
    """Unplug functions. Returns those that the guest has not released after ``seconds``.

    QEMU only sends a request to the guest, which may miss or refuse it (QEMU qapi/qdev.json, device_del,
    DEVICE_UNPLUG_GUEST_ERROR), so the request is repeated every few seconds. Raises :class:`VmError` if QEMU does not
    answer.
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
                    # It was never plugged, or was removed before we listened. Otherwise an unplug is in progress.
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
                    # Refused if it was never created, and for an iommufd that another function of its group uses.
                    with suppress(RefusedError):
                        await qmp.execute(undo, {key: arguments[key]}, timeout=_QMP_SECONDS)
    return list(left.values())


async def _bind_vfio(plug: PlugStep, link: GuestLink, seconds: float) -> BoundFunction:
    return await _call(plug, link, BindVfio(address=plug.guest_address, seconds=seconds), seconds)


async def _bind_native(plug: PlugStep, link: GuestLink, container: str, seconds: float) -> NativeFunction:
    call = BindNative(address=plug.guest_address, container=container, seconds=seconds)
    return await _call(plug, link, call, seconds)


async def _call(plug: PlugStep, link: GuestLink, call: Call[Answer], seconds: float) -> Answer:
    try:
        return await link.call(call, seconds=seconds + _MARGIN)
    except DeviceError as error:
        raise DeviceError(
            f"{plug.label} of group {plug.group}, in the guest {error.message}",
            hint=error.hint,
            evidence=error.evidence,
        ) from None
    except VmError as error:
        if link.ended.done():
            raise  # the guest has ended, which is not the device's fault
        raise error.with_context(f"{plug.label} of group {plug.group}") from None


def _missing_bars(plug: PlugStep, function: BoundFunction) -> list[tuple[int, int]]:
    """The function's BARs on the host that the guest could not place: number and size in bytes of each."""
    bars = function.bars
    return [(number, size) for number, size in plug.bars if number >= len(bars) or not bars[number]]


def _check_bars(plug: PlugStep, function: BoundFunction) -> None:
    for number, size in _missing_bars(plug, function):
        raise DeviceError(
            f"{plug.label} of group {plug.group}: the guest has no space for its BAR {number} of {size} bytes",
            hint="console.log shows the windows of its ports; pass the group in a separate sandbox",
        )
