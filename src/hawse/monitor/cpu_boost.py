"""Move a sandbox's processes to the control cgroup while a caller waits for the end of a container or the sandbox."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from hawse.monitor.processes.process_table import uninterrupted

if TYPE_CHECKING:
    from hawse.host.cgroup.control_cgroup import ControlCgroup
    from hawse.linux.processes import Process

#: Seconds before the move. An idle host ends a container in less. The move takes some hundredths of a second.
SECONDS = 0.5


class CpuBoost:
    """``programs`` returns the VM's processes. They are moved back when no caller waits any more."""

    def __init__(self, control: ControlCgroup, programs: Callable[[], Sequence[Process]]) -> None:
        self._control = control
        self._programs = programs
        self._waiting = 0
        self._boosted = False
        self._lock = asyncio.Lock()
        self._ending = False

    @asynccontextmanager
    async def while_waiting(self) -> AsyncIterator[None]:
        """Boost the VM, after :data:`SECONDS`, until the end of the block: a caller waits for a container's end."""
        boosting = asyncio.create_task(self._begin())
        try:
            yield
        finally:
            boosting.cancel()
            await asyncio.wait({boosting})

    async def await_exit(self, proxy: Process) -> None:
        """Wait for the exit of a proxy after its exit code was sent. Boost a slow proxy, since the engine waits for
        it."""
        if not proxy.is_alive():
            return
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(proxy.fileno(), ended.set)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(SECONDS):
                    await ended.wait()
                    return
        finally:
            loop.remove_reader(proxy.fileno())
        await asyncio.to_thread(self._control.enter, [proxy])

    def end(self) -> None:
        """Boost the VM's end for good. A thread moves the processes, since the next steps may block the event loop."""
        self._ending = True
        # List the processes here: the thread would race with the event loop, which reaps them.
        timer = threading.Timer(SECONDS, self._control.enter, [self._programs()])
        timer.daemon = True
        timer.start()

    async def _begin(self) -> None:
        await asyncio.sleep(SECONDS)
        self._waiting += 1
        try:
            await self._update()
            await asyncio.get_running_loop().create_future()
        finally:
            self._waiting -= 1
            await self._update()

    async def _update(self) -> None:
        """Move the processes if the number of waiting callers requires it."""
        async with self._lock:
            boosted = self._waiting > 0
            if boosted == self._boosted or self._ending:
                return
            self._boosted = boosted
            move = self._control.enter if boosted else self._control.leave
            await uninterrupted(asyncio.to_thread(move, self._programs()))
