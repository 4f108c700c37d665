"""The start and end of the agent's steps, for the host's timeline: nanoseconds of the guest's CLOCK_MONOTONIC."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

_MAX_STEPS = 256
_steps: list[tuple[str, int, int]] = []


@contextmanager
def span(name: str) -> Iterator[None]:
    """Record the block as a step."""
    began = time.monotonic_ns()
    try:
        yield
    finally:
        add(name, began, time.monotonic_ns())


def add(name: str, began: int, ended: int) -> None:
    """Record a step. Steps beyond the maximum are dropped."""
    if len(_steps) < _MAX_STEPS:
        _steps.append((name, began, ended))


def clear() -> None:
    """Remove all steps so far, which belong to a template."""
    _steps.clear()


def steps() -> list[dict[str, object]]:
    """All steps so far."""
    return [{"name": name, "began_ns": began, "ended_ns": ended} for name, began, ended in _steps]
