"""CPU time for a sandbox's processes while somebody waits for the end of a container, or of the sandbox."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from hawse.monitor.processes.processes import uninterrupted

if TYPE_CHECKING:
    from hawse.host.cgroup.control import ControlCgroup
    from hawse.linux.processes import Process

#: A host with CPU time to spare ends a container in less. A move takes some hundredths of a second.
SECONDS = 0.5


class Hurry:
    """``programs`` returns those of the virtual machine, which come back when nobody waits any more."""

    def __init__(self, control: ControlCgroup, programs: Callable[[], Sequence[Process]]) -> None:
        self._control = control
        self._programs = programs
        self._waiting = 0
        self._moved = False
        self._turn = asyncio.Lock()
        self._ending = False

    @asynccontextmanager
    async def waited_for(self) -> AsyncIterator[None]:
        """While this lasts somebody waits for the guest to end a container."""
        hurrying = asyncio.create_task(self._begin())
        try:
            yield
        finally:
            hurrying.cancel()
            await asyncio.wait({hurrying})

    async def see_off(self, proxy: Process) -> None:
        """Wait for the end of a proxy that has been told its exit code: the engine waits for that."""
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
        """The sandbox ends, by steps that may block the event loop: a thread moves its programs, which stay."""

        self._ending = True
        # They are looked up here: the thread would race with the event loop, which waits for them.
        timer = threading.Timer(SECONDS, self._control.enter, [self._programs()])
        timer.daemon = True
        timer.start()

    async def _begin(self) -> None:
        await asyncio.sleep(SECONDS)
        self._waiting += 1
        try:
            await self._settle()
            await asyncio.get_running_loop().create_future()
        finally:
            self._waiting -= 1
            await self._settle()

    async def _settle(self) -> None:
        """Have the programs where they are to be now."""
        async with self._turn:
            wanted = self._waiting > 0
            if wanted == self._moved or self._ending:
                return
            self._moved = wanted
            move = self._control.enter if wanted else self._control.leave
            await uninterrupted(asyncio.to_thread(move, self._programs()))
