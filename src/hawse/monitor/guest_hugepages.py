"""The huge pages of one container in the guest: reserved before it is made, given back when it is no more."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from hawse.errors import HawseError
from hawse.monitor.agent.calls import ReserveHugepages, ShareHugepages
from hawse.monitor.processes.processes import Processes, uninterrupted
from hawse.plan.model import ContainerPlan

#: Seconds that the guest may take for a GiB of them: each page is cleared, and the host finds memory for it.
_SECONDS_A_GIB = 2.0
_GIB_KIB = 1024 * 1024


class HugePages:
    """What was reserved, and only that, is given back: other containers of a pod have theirs in the same guest."""

    def __init__(self, plan: ContainerPlan, processes: Processes) -> None:
        self._plan = plan
        self._processes = processes
        self._reserved: list[tuple[int, int]] = []

    async def reserve(self) -> None:
        """Have them, and their file systems, which stay as long as the machine. Raises what the agent raises."""
        for kib, count in self._plan.hugepages:
            more = kib * count / _GIB_KIB * _SECONDS_A_GIB
            asked = asyncio.ensure_future(self._processes.call(ReserveHugepages(kib=kib, count=count), more=more))
            try:
                await uninterrupted(asked)
            finally:
                if asked.done() and not asked.cancelled() and asked.exception() is None:
                    self._reserved.append((kib, count))
        for name, fs in self._plan.hugetlbfs.items():
            await self._processes.call(ShareHugepages(name=name, kib=fs.kib, mode=fs.mode, uid=fs.uid, gid=fs.gid))

    async def release(self) -> None:
        """Give back what is the container's alone."""
        while self._reserved:
            kib, count = self._reserved.pop()
            with suppress(HawseError):
                await self._processes.call(ReserveHugepages(kib=kib, count=-count))
