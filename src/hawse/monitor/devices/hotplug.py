"""Plugging VFIO functions into the running guest and taking them out again."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from hawse.errors import DeviceError, RefusedError, VmError
from hawse.monitor.agent.guest_link import GuestLink
from hawse.monitor.devices.device_map import Place
from hawse.monitor.devices.guest_drivers import Native, read_answer
from hawse.plan.model import NodeRequest, PlugStep
from hawse.vfio import interrupts
from hawse.vfio.host import dma_mappings
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
VFIO_CONTAINER = (10, 196)  # misc device, VFIO_MINOR in include/linux/miscdevice.h
_MAX_NUMBER = 2**20
Arrived = TypeVar("Arrived")
_IOMMU = "/dev/iommu"

Groups = dict[int, tuple[int, int, int]]
"""Number in the guest, major and minor of the node, by the host's number of the group."""
Files = dict[str, Place]
"""The guest's device file of a function, by QEMU's name of it, and /dev/iommu, by ""; none that the guest has not."""


async def attach(plugs: Sequence[PlugStep], qmp: Qmp, link: GuestLink, *, seconds: float) -> tuple[Groups, Files]:
    """Plug everything and have VFIO take it; what became of the groups, and of the functions' device files.

    Raises :class:`DeviceError` naming the device.
    """
    seen = await arrive(plugs, qmp, [_bound(plug, link, seconds) for plug in plugs], seconds=seconds)
    for group in {plug.group for plug, found in zip(plugs, seen, strict=True) if _without_room(plug, found)}:
        members = [index for index, plug in enumerate(plugs) if plug.group == group]
        if len(members) > 1:
            # Behind a bridge, whose windows the guest's kernel has made when it was empty.
            address = plugs[members[0]].guest_address
            await link.call("find_anew", {"address": address}, seconds=seconds + _MARGIN)
            again = await asyncio.gather(*(_bound(plugs[index], link, seconds) for index in members))
            for index, found in zip(members, again, strict=True):
                seen[index] = found
        for index in members:
            _check_room(plugs[index], seen[index])
    files = {name: place for found in seen for name, place in found.files.items()}
    return _together(plugs, [found.numbers for found in seen]), files


async def attach_native(
    plugs: Sequence[PlugStep], qmp: Qmp, link: GuestLink, *, container: str, seconds: float
) -> dict[str, Native]:
    """Plug everything and have the guest's own drivers take it; what stands for each function, by QEMU's name of it.

    Raises :class:`DeviceError` naming the device.
    """
    found = await arrive(
        plugs, qmp, [_driven(plug, link, container, seconds) for plug in plugs], seconds=seconds
    )  # fmt: skip
    return {plug.device: native for plug, native in zip(plugs, found, strict=True)}


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


async def _add_disk(plug: PlugStep, qmp: Qmp, arguments: dict[str, Any]) -> None:
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


def _together(plugs: Sequence[PlugStep], seen: Sequence[tuple[int, int, int]]) -> Groups:
    """Each group's place in the guest. Raises :class:`DeviceError` where the guest has divided one, or joined two."""
    groups: Groups = {}
    hosts: dict[int, int] = {}
    for plug, numbers in zip(plugs, seen, strict=True):
        if groups.setdefault(plug.group, numbers) != numbers:
            raise DeviceError(
                f"{plug.label}: in the guest's group {numbers[0]}, others of host group {plug.group} are in "
                f"{groups[plug.group][0]}",
                hint="its console log has the groups that the guest's IOMMU makes",
            )
        if (other := hosts.setdefault(numbers[0], plug.group)) != plug.group:
            raise DeviceError(
                f"{plug.label} of host group {plug.group}: in the guest's group {numbers[0]}, as is host group {other}",
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

    def deleted(data: dict[str, Any]) -> bool:
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


def guest_nodes(requests: Sequence[NodeRequest], groups: Groups, files: Files) -> list[list[Any]]:
    """The agent's list of nodes: path, host major and minor, guest group (None: the container node, or /dev/iommu),
    guest numbers, and for what is of the device file interface its path in the guest.

    Where the guest has no such file, its numbers are None.
    """
    nodes: list[list[Any]] = []
    for request in requests:
        group, *numbers = (None, *VFIO_CONTAINER) if request.group is None else groups[request.group]
        node = [request.path, request.major, request.minor, group]
        if request.file:
            own, *found = files.get(request.device, ("", None, None))
            nodes.append([*node, *found, own or request.path])
        else:
            nodes.append([*node, *numbers])
    return nodes


@dataclass(frozen=True)
class _Bound:
    """What the agent says of a function that vfio-pci has: of its group, of its device file, and of its BARs."""

    numbers: tuple[int, int, int]
    files: Files
    bars: list[int]


async def _bound(plug: PlugStep, link: GuestLink, seconds: float) -> _Bound:
    found = await _bind(plug, link, "bind_vfio", {}, seconds)
    answer: dict[str, Any] = found if isinstance(found, dict) else {}
    group, *numbers = (_number(plug, answer.get(key), key) for key in ("group", "major", "minor"))
    files: Files = {}
    if answer.get("file") is not None and answer.get("iommu") is not None:
        number, *rest = _numbers(plug, answer["file"], 3, "device file")
        files[plug.device] = (f"/dev/vfio/devices/vfio{number}", rest[0], rest[1])
        major, minor = _numbers(plug, answer["iommu"], 2, _IOMMU)
        files[""] = (_IOMMU, major, minor)
    bars = answer.get("bars")
    return _Bound((group, numbers[0], numbers[1]), files, bars if isinstance(bars, list) else [])


def _without_room(plug: PlugStep, found: _Bound) -> list[tuple[int, int]]:
    """The BARs that a function has on the host, and the guest found no room for."""
    return [(number, size) for number, size in plug.bars if number >= len(found.bars) or not found.bars[number]]


def _check_room(plug: PlugStep, found: _Bound) -> None:
    for number, size in _without_room(plug, found):
        raise DeviceError(
            f"{plug.label} of group {plug.group}: the guest has no room for its BAR {number} of {size} bytes",
            hint="its console log has the windows of its ports; pass the group in a sandbox alone",
        )


async def _driven(plug: PlugStep, link: GuestLink, container: str, seconds: float) -> Native:
    return read_answer(plug, await _bind(plug, link, "bind_native", {"container": container}, seconds))


async def _bind(plug: PlugStep, link: GuestLink, method: str, params: dict[str, Any], seconds: float) -> object:
    try:
        call = params | {"address": plug.guest_address, "seconds": seconds}
        return await link.call(method, call, seconds=seconds + _MARGIN)
    except DeviceError as error:
        raise DeviceError(
            f"{plug.label} of group {plug.group}, in the guest {error.message}",
            hint=error.hint,
            evidence=error.evidence,
        ) from None


def _numbers(plug: PlugStep, answer: object, count: int, what: str) -> list[int]:
    found = answer if isinstance(answer, list) and len(answer) == count else [None] * count
    return [_number(plug, number, f"number of the {what}") for number in found]


def _number(plug: PlugStep, number: object, key: str) -> int:
    if type(number) is not int or not 0 <= number < _MAX_NUMBER:
        raise VmError(
            f"{plug.label}: the guest reports no usable {key} of its group",
            hint="it is not to be trusted: delete the container",
        )
    return number
