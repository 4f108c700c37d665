"""Block devices of the host in the virtual machine: each is plugged once, for all containers of the sandbox.

A device that one container only reads and another writes has one copy in the guest's page cache that way, as it has on
a host. Only where it was plugged read-only and a later container writes to it, it is plugged once more.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hawse.errors import DeviceError, HawseError, VmError
from hawse.monitor.agent.calls import BindDisk
from hawse.monitor.devices import hotplug
from hawse.monitor.devices.claims import Claims
from hawse.nodes.block import open_device
from hawse.plan.capacity import serves
from hawse.plan.model import NO_GROUP, DiskPlan, PlugStep
from hawse.vm.arguments import plug_disk
from hawse.vm.ports import Port

if TYPE_CHECKING:
    from hawse.monitor.agent.guest_link import GuestLink
    from hawse.vm.qmp import Qmp

#: Sets of descriptors below are those of emulated disks, by their PCI addresses (hawse.vm.arguments).
_FIRST_SET = 1 << 16
_QMP_SECONDS = 30.0
_MARGIN = 5.0

Places = dict[tuple[int, int], tuple[int, int]]
"""The guest's numbers of block devices, by the host's."""


@dataclass
class _Plugged:
    plan: DiskPlan
    port: Port
    fdset: int
    step: PlugStep
    place: tuple[int, int] = (0, 0)
    owners: set[str] = field(default_factory=set)


class Disks:
    """Those of one virtual machine, in the monitor's event loop. An ``owner`` is a container's id."""

    def __init__(self, claims: Claims, *, seconds: float, open_device: Callable[..., int] = open_device) -> None:
        """``seconds``: what a device may take in the guest."""
        self._claims = claims
        self._seconds = seconds
        self._open = open_device
        self._plugged: list[_Plugged] = []
        self._numbers = itertools.count(_FIRST_SET)
        self._lock = asyncio.Lock()

    @property
    def plugged(self) -> list[DiskPlan]:
        """Those that are there."""
        return [disk.plan for disk in self._plugged]

    async def attach(self, wanted: Sequence[DiskPlan], *, owner: str, qmp: Qmp, link: GuestLink) -> Places:
        """Plug those that are not there; where the guest has each.

        Raises :class:`DeviceError` naming the device; :meth:`detach` then takes out what came before it.
        """
        async with self._lock:
            places: Places = {}
            for plan in wanted:
                found = next((disk for disk in self._plugged if serves(disk.plan, plan)), None)
                disk = found or await self._plug(plan, qmp, link)
                disk.owners.add(owner)
                places[plan.major, plan.minor] = disk.place
            return places

    async def detach(self, *, owner: str, qmp: Qmp) -> None:
        """Take out what nobody but the owner has. Raises :class:`DeviceError` for what the guest keeps."""
        async with self._lock:
            for disk in self._plugged:
                disk.owners.discard(owner)
            unused = [disk for disk in self._plugged if not disk.owners]
            left = [disk.step.label for disk in unused if not await self._unplug(disk, qmp)]
        if left:
            raise DeviceError(
                f"{', '.join(left)}: the guest does not let go of it within {self._seconds:g} s",
                hint="the end of the sandbox's virtual machine gives every device back",
            )

    async def _plug(self, plan: DiskPlan, qmp: Qmp, link: GuestLink) -> _Plugged:
        label = f"block device {plan.name} ({plan.major}:{plan.minor})"
        port = self._claims.take_port()
        if port is None:
            raise DeviceError(
                f"{label}: no spare port is left in the virtual machine",
                hint="delete another container of the pod, or have fewer block devices in it",
            )
        number = next(self._numbers)
        name, address = f"disk{number - _FIRST_SET + 1}", f"0000:{port.bus:02x}:00.0"
        commands = plug_disk(
            name,
            port,
            fdset=number,
            serial=plan.name,
            writable=plan.writable,
            logical=plan.logical,
            physical=plan.physical,
        )
        step = PlugStep(
            group=NO_GROUP, label=label, host="", note="", commands=commands, device=name, bus=port.takes_at,
            guest_address=address,
        )  # fmt: skip
        disk = _Plugged(plan, port, number, step)
        # It is among those that are plugged before it is: what becomes of it, detach() finds it.
        self._plugged.append(disk)
        try:
            await self._give(plan, number, label, qmp)
            [disk.place] = await hotplug.arrive([step], qmp, [self._bound(step, link)], seconds=self._seconds)
        except BaseException:
            with suppress(HawseError):
                await self._unplug(disk, qmp)
            raise
        return disk

    async def _give(self, plan: DiskPlan, number: int, label: str, qmp: Qmp) -> None:
        # Beside the event loop: a device whose medium does not answer is waited for.
        work = asyncio.to_thread(self._open, plan.major, plan.minor, writable=plan.writable)
        opening = asyncio.ensure_future(work)
        try:
            fd = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close)
            raise
        except OSError as error:
            raise DeviceError(
                f"{label}: the host cannot open it for {'writing' if plan.writable else 'reading'}: {error.strerror}",
                hint="see the kernel's log; a device that cannot be written to needs a rule of access r",
            ) from None
        try:
            await qmp.add(fd, {"fdset-id": number}, timeout=_QMP_SECONDS)
        finally:
            os.close(fd)

    async def _bound(self, step: PlugStep, link: GuestLink) -> tuple[int, int]:
        try:
            call = BindDisk(address=step.guest_address, seconds=self._seconds)
            numbers = await link.call(call, seconds=self._seconds + _MARGIN)
        except DeviceError as error:
            raise DeviceError(f"{step.label}, in the guest {error.message}", hint=error.hint) from None
        return numbers.major, numbers.minor

    async def _unplug(self, disk: _Plugged, qmp: Qmp) -> bool:
        """Take it out of the virtual machine. False where the guest keeps it: its port is lost then."""
        if disk in self._plugged:
            self._plugged.remove(disk)
        if await hotplug.unplug([disk.step], qmp, seconds=self._seconds):
            return False
        with suppress(VmError):  # one that was never given
            await qmp.execute("remove-fd", {"fdset-id": disk.fdset}, timeout=_QMP_SECONDS)
        self._claims.return_port(disk.port)
        return True


def _close(opening: asyncio.Future[int]) -> None:
    """Close what nobody waits for any more."""
    if not opening.cancelled() and opening.exception() is None:
        os.close(opening.result())
