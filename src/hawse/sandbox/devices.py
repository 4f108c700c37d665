"""Plugging VFIO functions into the running guest and taking them out again."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hawse.errors import DeviceError, VmError
from hawse.sandbox.guest import GuestLink
from hawse.sandbox.plan import NodeRequest, PlugStep

if TYPE_CHECKING:
    from hawse.vm.qmp import Qmp

_QMP_SECONDS = 30.0
_MARGIN = 5.0
_UNPLUG_SECONDS = 5.0
_VFIO_CONTAINER = (10, 196)  # misc device, VFIO_MINOR in include/linux/miscdevice.h
_MAX_NUMBER = 2**20


async def attach(
    plugs: Sequence[PlugStep], qmp: Qmp, link: GuestLink, *, seconds: float
) -> dict[int, tuple[int, int, int]]:
    """Plug everything; {host group: (guest group, major, minor)}.

    All waits in the guest begin before the first device is plugged. Raises :class:`DeviceError` naming the device.
    """
    waits = [asyncio.create_task(_bound(plug, link, seconds)) for plug in plugs]
    try:
        for plug in plugs:
            for command, arguments in plug.commands:
                try:
                    await qmp.execute(command, arguments, timeout=_QMP_SECONDS)
                except VmError as error:
                    raise DeviceError(
                        f"{plug.label} of group {plug.group}: QEMU refuses it: {error.message}", hint=error.hint
                    ) from None
        groups: dict[int, tuple[int, int, int]] = {}
        for plug, wait in zip(plugs, waits, strict=True):
            seen = await wait
            if groups.setdefault(plug.group, seen) != seen:
                raise DeviceError(
                    f"{plug.label}: in the guest's group {seen[0]}, others of host group {plug.group} are in "
                    f"{groups[plug.group][0]}"
                )
        return groups
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


async def release(plugs: Sequence[PlugStep], qmp: Qmp) -> None:
    """Unplug what is plugged, as far as the guest lets go; the end of QEMU releases what it keeps."""
    if not plugs:
        return
    with qmp.listen("DEVICE_DELETED") as events:
        for plug in plugs:
            try:
                await qmp.execute("device_del", {"id": plug.device}, timeout=_QMP_SECONDS)
            except VmError:
                return
        plugged = {plug.device for plug in plugs}

        def deleted(data: dict[str, Any]) -> bool:
            plugged.discard(str(data.get("device")))
            return not plugged

        await events.wait(deleted, seconds=_UNPLUG_SECONDS)


def guest_nodes(requests: Sequence[NodeRequest], groups: dict[int, tuple[int, int, int]]) -> list[list[Any]]:
    """The agent's list of nodes: path, host major and minor, guest group (None: the container node), guest numbers."""
    nodes: list[list[Any]] = []
    for request in requests:
        group, major, minor = (None, *_VFIO_CONTAINER) if request.group is None else groups[request.group]
        nodes.append([request.path, request.major, request.minor, group, major, minor])
    return nodes


async def _bound(plug: PlugStep, link: GuestLink, seconds: float) -> tuple[int, int, int]:
    try:
        answer = await link.call(
            "bind_vfio", {"address": plug.guest_address, "seconds": seconds}, seconds=seconds + _MARGIN
        )
    except DeviceError as error:
        raise DeviceError(
            f"{plug.label} of group {plug.group}, in the guest {error.message}",
            hint=error.hint,
            evidence=error.evidence,
        ) from None
    return _number(plug, answer, "group"), _number(plug, answer, "major"), _number(plug, answer, "minor")


def _number(plug: PlugStep, answer: object, key: str) -> int:
    number = answer.get(key) if isinstance(answer, dict) else None
    if not isinstance(number, int) or not 0 <= number < _MAX_NUMBER:
        raise VmError(f"{plug.label}: the guest reports no usable {key} of its group")
    return number
