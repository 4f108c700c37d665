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
    kept: bool = False


class Disks:
    """Those of one virtual machine, in the monitor's event loop. An ``owner`` is a container's id.

    A disk that the guest does not release stays on record with its port and its last owner: each :meth:`detach` of the
    owner asks the guest again. No other container is given it, since the guest may release it at any moment.
    """

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
        """Those that containers can share."""
        return [disk.plan for disk in self._plugged if not disk.kept]

    def keeps(self, owner: str) -> bool:
        """Whether the guest has not released a disk of this container, which has been detached."""
        return any(disk.kept and owner in disk.owners for disk in self._plugged)

    async def attach(self, wanted: Sequence[DiskPlan], *, owner: str, qmp: Qmp, link: GuestLink) -> Places:
        """Plug those that are not there; where the guest has each.

        Raises :class:`DeviceError` naming the device; :meth:`detach` then takes out what came before it.
        """
        async with self._lock:
            places: Places = {}
            for plan in wanted:
                await self._refuse_kept(plan, qmp)
                found = next((disk for disk in self._plugged if serves(disk.plan, plan)), None)
                disk = found or await self._plug(plan, qmp, link, owner=owner)
                disk.owners.add(owner)
                places[plan.major, plan.minor] = disk.place
            return places

    async def detach(self, *, owner: str, qmp: Qmp) -> None:
        """Take out what only the owner has. Raises :class:`DeviceError` for what the guest keeps, each time."""
        async with self._lock:
            unused = [disk for disk in self._plugged if disk.owners == {owner}]
            left = [disk.step.label for disk in unused if not await self._unplug(disk, qmp)]
            for disk in self._plugged:
                if not disk.kept:
                    disk.owners.discard(owner)
        if left:
            raise DeviceError(
                f"{', '.join(left)}: the guest does not let go of it within {self._seconds:g} s",
                hint="the end of the sandbox's virtual machine gives every device back",
            )

    async def _refuse_kept(self, plan: DiskPlan, qmp: Qmp) -> None:
        """Ask the guest again for this device. Raises :class:`DeviceError` where it still keeps it."""
        for disk in [disk for disk in self._plugged if disk.kept]:
            if (disk.plan.major, disk.plan.minor) == (plan.major, plan.minor) and not await self._unplug(disk, qmp):
                raise DeviceError(
                    f"{disk.step.label}: the guest has not released it after container {', '.join(disk.owners)}",
                    hint="the end of the sandbox's virtual machine gives every device back",
                )

    async def _plug(self, plan: DiskPlan, qmp: Qmp, link: GuestLink, *, owner: str) -> _Plugged:
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
        disk = _Plugged(plan, port, number, step, owners={owner})
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
        """Take it out of the virtual machine. False where the guest keeps it."""
        disk.kept = True  # until QEMU reports otherwise
        if await hotplug.unplug([disk.step], qmp, seconds=self._seconds):
            return False
        self._plugged.remove(disk)
        with suppress(VmError):  # one that was never given
            await qmp.execute("remove-fd", {"fdset-id": disk.fdset}, timeout=_QMP_SECONDS)
        self._claims.return_port(disk.port)
        return True


def _close(opening: asyncio.Future[int]) -> None:
    """Close what nobody waits for any more."""
    if not opening.cancelled() and opening.exception() is None:
        os.close(opening.result())
