"""Block devices of the host in the virtual machine: each is plugged once, for all containers of the sandbox.

So a device that one container reads and another writes is in the guest's page cache once, as on a host. A device that
was plugged read-only is plugged a second time for a later container that writes to it.
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

#: Lower fd set numbers belong to emulated disks, by their PCI addresses (hawse.vm.arguments).
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
    """The block devices of one VM, in the monitor's event loop. An ``owner`` is a container's id.

    A disk that the guest does not release stays on record with its port and its last owner: each :meth:`detach` of the
    owner asks the guest again. No other container can use it, since the guest may release it at any moment.
    """

    def __init__(self, claims: Claims, *, seconds: float, open_device: Callable[..., int] = open_device) -> None:
        """``seconds``: the timeout of a device in the guest."""
        self._claims = claims
        self._seconds = seconds
        self._open = open_device
        self._plugged: list[_Plugged] = []
        self._numbers = itertools.count(_FIRST_SET)
        self._lock = asyncio.Lock()

    @property
    def plugged(self) -> list[DiskPlan]:
        """The disks that containers can share."""
        return [disk.plan for disk in self._plugged if not disk.kept]

    def keeps(self, owner: str) -> bool:
        """Whether the guest has not released a disk of this container, which has been detached."""
        return any(disk.kept and owner in disk.owners for disk in self._plugged)

    async def attach(self, plans: Sequence[DiskPlan], *, owner: str, qmp: Qmp, link: GuestLink) -> Places:
        """Plug the disks that are not plugged yet. Returns the guest's numbers of each.

        Raises :class:`DeviceError` naming the device. :meth:`detach` then unplugs the disks before it.
        """
        async with self._lock:
            places: Places = {}
            for plan in plans:
                await self._refuse_kept(plan, qmp)
                plugged = next((disk for disk in self._plugged if serves(disk.plan, plan)), None)
                disk = plugged or await self._plug(plan, qmp, link, owner=owner)
                disk.owners.add(owner)
                places[plan.major, plan.minor] = disk.place
            return places

    async def detach(self, *, owner: str, qmp: Qmp) -> None:
        """Unplug the disks that only this owner uses. Each call raises :class:`DeviceError` for those the guest
        keeps."""
        async with self._lock:
            unused = [disk for disk in self._plugged if disk.owners == {owner}]
            left = [disk.step.label for disk in unused if not await self._unplug(disk, qmp)]
            for disk in self._plugged:
                if not disk.kept:
                    disk.owners.discard(owner)
        if left:
            raise DeviceError(
                f"{', '.join(left)}: the guest does not release it within {self._seconds:g} s",
                hint="every device is released when the sandbox's virtual machine ends",
            )

    async def _refuse_kept(self, plan: DiskPlan, qmp: Qmp) -> None:
        """Retry to unplug this device. Raises :class:`DeviceError` if the guest still does not release it."""
        for disk in [disk for disk in self._plugged if disk.kept]:
            if (disk.plan.major, disk.plan.minor) == (plan.major, plan.minor) and not await self._unplug(disk, qmp):
                raise DeviceError(
                    f"{disk.step.label}: the guest has not released it after container {', '.join(disk.owners)}",
                    hint="every device is released when the sandbox's virtual machine ends",
                )

    async def _plug(self, plan: DiskPlan, qmp: Qmp, link: GuestLink, *, owner: str) -> _Plugged:
        label = f"block device {plan.name} ({plan.major}:{plan.minor})"
        port = self._claims.take_port()
        if port is None:
            raise DeviceError(
                f"{label}: no spare port is left in the virtual machine",
                hint="delete another container of the pod, or use fewer block devices",
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
        # Before the plug, so that detach() finds it even if a step fails.
        self._plugged.append(disk)
        try:
            await self._pass_descriptor(plan, number, label, qmp)
            [disk.place] = await hotplug.plug_and_wait([step], qmp, [self._bind(step, link)], seconds=self._seconds)
        except BaseException:
            with suppress(HawseError):
                await self._unplug(disk, qmp)
            raise
        return disk

    async def _pass_descriptor(self, plan: DiskPlan, number: int, label: str, qmp: Qmp) -> None:
        # In a thread: open(2) blocks while a medium does not answer.
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
                hint="see the kernel log; a read-only device needs a rule with access r",
            ) from None
        try:
            await qmp.add(fd, {"fdset-id": number}, timeout=_QMP_SECONDS)
        finally:
            os.close(fd)

    async def _bind(self, step: PlugStep, link: GuestLink) -> tuple[int, int]:
        try:
            call = BindDisk(address=step.guest_address, seconds=self._seconds)
            numbers = await link.call(call, seconds=self._seconds + _MARGIN)
        except DeviceError as error:
            raise DeviceError(f"{step.label}, in the guest {error.message}", hint=error.hint) from None
        return numbers.major, numbers.minor

    async def _unplug(self, disk: _Plugged, qmp: Qmp) -> bool:
        """Unplug a disk from the VM. Returns False if the guest does not release it."""
        disk.kept = True  # until QEMU reports otherwise
        if await hotplug.unplug([disk.step], qmp, seconds=self._seconds):
            return False
        self._plugged.remove(disk)
        with suppress(VmError):  # QEMU never got the descriptor
            await qmp.execute("remove-fd", {"fdset-id": disk.fdset}, timeout=_QMP_SECONDS)
        self._claims.return_port(disk.port)
        return True


def _close(opening: asyncio.Future[int]) -> None:
    """Close the descriptor of a device that was opened after the cancellation."""
    if not opening.cancelled() and opening.exception() is None:
        os.close(opening.result())
