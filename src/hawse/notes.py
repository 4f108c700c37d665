"""Notes: warnings and debug messages that a plan or a step returns for the log."""

from __future__ import annotations

from collections import namedtuple
from contextlib import contextmanager

from hawse.errors import HawseError

TYPE_CHECKING = False  # typing's import would cost a hot verb a tenth of its time
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import NamedTuple

    class Note(NamedTuple):
        """A line of the log. ``level`` is "warning" or "debug"."""

        level: str
        text: str

else:
    Note = namedtuple("Note", ("level", "text"))

Notes = list[Note]


def warning(text: str) -> Note:
    """A note that the user should see."""
    return Note("warning", text)


def debug(text: str) -> Note:
    """A note for `--debug`."""
    return Note("debug", text)


@contextmanager
def noted(notes: Sequence[Note]) -> Iterator[None]:
    """Attach the notes to an error of the block, so that they are logged although no plan is returned.

    The block may append to ``notes``.
    """
    try:
        yield
    except HawseError as error:
        raise error.after(notes) from None
