"""An event loop whose clock jumps to the next timer when nothing else can happen, for tests of timeouts.

A wait of 20 seconds takes no real time, and always exactly 20 seconds of the loop's clock.
"""

from __future__ import annotations

import asyncio
import gc
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar

Value = TypeVar("Value")


class StalledError(Exception):
    """Every task waits for an event that can no longer happen: no timer, thread or input is left."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """The loop, for tests whose sockets have both ends in the same loop.

    While a call of ``asyncio.to_thread`` runs, the clock moves in real time: the thread may cause an event.
    """

    def __init__(self) -> None:
        self._ahead = 0.0
        self._threads = 0
        super().__init__(_Selector(self))

    def time(self) -> float:
        """The time in seconds: the real clock plus the skipped time."""
        return super().time() + self._ahead

    def skip(self, seconds: float) -> None:
        """Move the clock."""
        self._ahead += seconds

    @property
    def waits_for_thread(self) -> bool:
        """Whether a call in another thread has not returned yet."""
        return self._threads > 0

    def run_in_executor(  # type: ignore[override]
        self, executor: Executor | None, func: Callable[..., Value], *args: Any
    ) -> asyncio.Future[Value]:
        """As in every loop; the calls are counted."""
        running = super().run_in_executor(executor, func, *args)
        self._threads += 1
        running.add_done_callback(self._returned)
        return running

    async def shutdown_default_executor(self) -> None:
        """As in every loop; it waits for a thread."""
        self._threads += 1
        await super().shutdown_default_executor()

    def _returned(self, _done: object) -> None:
        self._threads -= 1


class _Selector(selectors.DefaultSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        if self._loop.waits_for_thread:
            return super().select(timeout)
        if timeout is None:
            raise StalledError("no timer, no thread and no input: every task waits for ever")
        self._loop.skip(timeout)
        return []


def run(story: Coroutine[Any, Any, Value]) -> Value:
    """``asyncio.run`` with this loop. Raises AssertionError if a task failed and its result was never retrieved."""
    unheard: list[str] = []
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.get_loop().set_exception_handler(lambda _, context: unheard.append(str(context)))
        value = runner.run(story)
    gc.collect(0)
    assert not unheard, unheard
    return value
