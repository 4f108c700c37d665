"""What a plan or a step has to report to the log without failing."""

from __future__ import annotations

from typing import NamedTuple


class Note(NamedTuple):
    """A line of the log. ``level`` is "warning" or "debug"."""

    level: str
    text: str


def warning(self, message: str) -> None: ...
    def debug(self, message: str) -> None: ...


def warning(text: str) -> Note:
    """A note that the user should see."""
    return Note("warning", text)


def debug(text: str) -> Note:
    """A note for `--debug`."""
    return Note("debug", text)
