"""End containers that the guest does not end in time after SIGKILL."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from hawse.errors import HawseError, VmError
from hawse.monitor.agent.calls import Signal

if TYPE_CHECKING:
    from hawse.monitor.container import Container
    from hawse.monitor.cpu_boost import CpuBoost
    from hawse.monitor.processes.process_table import Processes

#: Seconds in which the guest must end a container after SIGKILL. Then the VM is ended, in 3 s at most.
_KILL_SECONDS = 6.0


class Deadlines:
    """``seconds`` is the limit for containers that have joined. ``fail_vm`` ends the VM for a reason."""

    def __init__(
        self, processes: Processes, boost: CpuBoost, *, seconds: float, fail_vm: Callable[[HawseError], None]
    ) -> None:
        # The end of the VM also ends the other containers of the pod, so a slow guest, as without KVM, gets more time.
        self._seconds = max(_KILL_SECONDS, seconds)
        self._processes = processes
        self._boost = boost
        self._fail_vm = fail_vm
        self._tasks: dict[Container, asyncio.Task[None]] = {}

    def begin(self, container: Container, *, first: bool) -> None:
        """Start a container's deadline. If the guest does not end the container in time, the VM is ended."""
        if container not in self._tasks:
            self._tasks[container] = asyncio.create_task(self._await_end(container, first))
            self._tasks[container].add_done_callback(lambda _: self._tasks.pop(container))

    def end(self) -> None:
        """Stop all deadlines: the VM has ended."""
        for task in self._tasks.values():
            task.cancel()

    async def _await_end(self, container: Container, first: bool) -> None:
        async with self._boost.while_waiting():
            seconds = _KILL_SECONDS if first else self._seconds
            if not first:
                if await _ends(container, seconds):
                    return
                with suppress(HawseError):
                    call = Signal(container=container.plan.id, process=0, signal=signal.SIGKILL, everyone=True)
                    await self._processes.call(call, within=_KILL_SECONDS)
            if not await _ends(container, seconds):
                self._fail_vm(
                    VmError(
                        f"the guest has not ended container {container.plan.id} within {seconds:g} s of SIGKILL",
                        hint="its virtual machine was ended",
                    )
                )


async def _ends(container: Container, seconds: float) -> bool:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await container.stopped.wait()
    return container.stopped.is_set()
