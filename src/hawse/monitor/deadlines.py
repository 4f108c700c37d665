"""Ends containers that the guest does not end in time after SIGKILL."""

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
    from hawse.monitor.cpu_boost import Hurry
    from hawse.monitor.processes.processes import Processes

#: How long the guest may take to end a container after SIGKILL. The end of the VM then takes 3 s at most.
_KILL_SECONDS = 6.0


class Deadlines:
    """``seconds`` is the time of a container that has joined; ``give_up`` ends the VM for a reason."""

    def __init__(
        self, processes: Processes, hurry: Hurry, *, seconds: float, give_up: Callable[[HawseError], None]
    ) -> None:
        # The other containers of the pod would end too: a guest that is only slow, as without KVM, has more time.
        self._seconds = max(_KILL_SECONDS, seconds)
        self._processes = processes
        self._hurry = hurry
        self._give_up = give_up
        self._tasks: dict[Container, asyncio.Task[None]] = {}

    def begin(self, container: Container, *, first: bool) -> None:
        """The container must end: if the guest does not end it in time, the VM ends."""
        if container not in self._tasks:
            self._tasks[container] = asyncio.create_task(self._see_end(container, first))
            self._tasks[container].add_done_callback(lambda _: self._tasks.pop(container))

    def end(self) -> None:
        """The VM has ended."""
        for task in self._tasks.values():
            task.cancel()

    async def _see_end(self, container: Container, first: bool) -> None:
        async with self._hurry.waited_for():
            seconds = _KILL_SECONDS if first else self._seconds
            if not first:
                if await _ends(container, seconds):
                    return
                with suppress(HawseError):
                    call = Signal(container=container.plan.id, process=0, signal=signal.SIGKILL, everyone=True)
                    await self._processes.call(call, within=_KILL_SECONDS)
            if not await _ends(container, seconds):
                self._give_up(
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
