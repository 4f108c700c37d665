"""When the agent's steps began and ended, for the host's timeline: nanoseconds of this guest's CLOCK_MONOTONIC."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

_MOST = 256
_steps: list[tuple[str, int, int]] = []


@contextmanager
def span(name: str) -> Iterator[None]:
    """The block is a step."""
    began = time.monotonic_ns()
    try:
        yield
    finally:
        add(name, began, time.monotonic_ns())


def add(name: str, began: int, ended: int) -> None:
    """Note a step."""
    if len(_steps) < _MOST:
        _steps.append((name, began, ended))


def forget() -> None:
    """What was so far belongs to a template."""
    _steps.clear()


def taken() -> list[dict[str, object]]:
    """All steps so far."""
    return [{"name": name, "began_ns": began, "ended_ns": ended} for name, began, ended in _steps]
