"""Work that must not be interrupted: a cancelled caller waits until the work has ended."""

from __future__ import annotations

import asyncio

import pytest

from hawse.monitor.processes.process_table import uninterrupted


@pytest.mark.parametrize("times", [1, 2, 3])
def test_cancellation_waits_for_the_end_of_the_work(times: int) -> None:
    """The command that creates a container is killed, and its engine deletes the container: these are two
    cancellations."""

    async def story() -> None:
        gate, done = asyncio.Event(), asyncio.Event()

        async def work() -> None:
            await gate.wait()
            done.set()

        waiting = asyncio.create_task(uninterrupted(work()))
        for _ in range(times):
            await asyncio.sleep(0)
            waiting.cancel()
            for _ in range(5):
                await asyncio.sleep(0)
            assert not waiting.done()
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert done.is_set()

    asyncio.run(story())


def test_result_and_error_are_passed_on() -> None:
    async def fail() -> None:
        raise ValueError("no")

    async def succeed() -> int:
        return 7

    assert asyncio.run(uninterrupted(succeed())) == 7
    with pytest.raises(ValueError, match="no"):
        asyncio.run(uninterrupted(fail()))
