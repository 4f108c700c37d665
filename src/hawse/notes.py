"""What a plan or a step has to report to the log without failing."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Note(NamedTuple):
    """A line of the log. ``level`` is "warning" or "debug"."""

    level: str
    text: str


class Log(Protocol):
    """Where notes go (:class:`hawse.log.Log`)."""

    def warning(self, message: str) -> None: ...
    def debug(self, message: str) -> None: ...


def warning(text: str) -> Note:
    """A note that the user should see."""
    return Note("warning", text)


def debug(text: str) -> Note:
    """A note for `--debug`."""
    return Note("debug", text)


def write(notes: list[Note], log: Log) -> None:
    """Write notes to a log."""
    for note in notes:
        (log.warning if note.level == "warning" else log.debug)(note.text)
