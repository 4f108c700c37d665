"""Repetitions: a few in `make test`, many in `make soak`, which runs the tests with the marker `soak`."""

from __future__ import annotations

import os

_SOAK = bool(os.environ.get("HAWSE_SOAK"))


def rounds(few: int, *, soak: int) -> int:
    """The number of repetitions in a test."""
    return soak if _SOAK else few
