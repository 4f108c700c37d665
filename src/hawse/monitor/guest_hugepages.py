"""The huge pages of one container in the guest: reserve them before its creation, and release them after its end."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from hawse.errors import HawseError
from hawse.monitor.agent.calls import ReserveHugepages, ShareHugepages
from hawse.monitor.processes.process_table import Processes, uninterrupted
from hawse.plan.model import ContainerPlan

#: Seconds per GiB: the guest clears each page, and the host allocates memory for it.
_SECONDS_A_GIB = 2.0
_GIB_KIB = 1024 * 1024


class HugePages:
    """Releases only pages that it has reserved: other containers of the pod have pages in the same guest."""

    def __init__(self, plan: ContainerPlan, processes: Processes) -> None:
        self._plan = plan
        self._processes = processes
        self._reserved: list[tuple[int, int]] = []

    async def reserve(self) -> None:
        """Reserve the pages, and mount the hugetlbfs, which stays until the VM ends. Raises the agent's errors."""
        for kib, count in self._plan.hugepages:
            more = kib * count / _GIB_KIB * _SECONDS_A_GIB
            reservation = asyncio.ensure_future(self._processes.call(ReserveHugepages(kib=kib, count=count), more=more))
            try:
                await uninterrupted(reservation)
            finally:
                if reservation.done() and not reservation.cancelled() and reservation.exception() is None:
                    self._reserved.append((kib, count))
        for name, fs in self._plan.hugetlbfs.items():
            await self._processes.call(ShareHugepages(name=name, kib=fs.kib, mode=fs.mode, uid=fs.uid, gid=fs.gid))

    async def release(self) -> None:
        """Release the pages of this container."""
        while self._reserved:
            kib, count = self._reserved.pop()
            with suppress(HawseError):
                await self._processes.call(ReserveHugepages(kib=kib, count=-count))
