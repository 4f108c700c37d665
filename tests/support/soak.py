"""Repetitions: a handful in `make test`, many in `make soak`, which runs the tests that are marked `soak`."""

from __future__ import annotations

import os

_SOAK = bool(os.environ.get("HAWSE_SOAK"))


def rounds(few: int, *, soak: int) -> int:
    """How often a test repeats what it does."""
    return soak if _SOAK else few
