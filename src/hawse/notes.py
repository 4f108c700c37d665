"""What a plan or a step reports to the log without failing."""

from __future__ import annotations

from typing import NamedTuple


class Note(NamedTuple):
    """A line of the log. ``level`` is "warning" or "debug"."""

    level: str
    text: str


Notes = list[Note]


def warning(text: str) -> Note:
    """A note that the user should see."""
    return Note("warning", text)


def debug(text: str) -> Note:
    """A note for `--debug`."""
    return Note("debug", text)
