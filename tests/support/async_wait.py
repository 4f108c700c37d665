"""Waiting in tests that run in an event loop; tests/support/patience.py is for other tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tests.support.patience import patience


async def until(condition: Callable[[], bool], *, seconds: float = 7) -> None:
    """Wait until a task or a thread makes the condition true. ``seconds`` is passed to :func:`patience`."""
    async with asyncio.timeout(patience(seconds)):
        while not condition():
            await asyncio.sleep(0.002)
