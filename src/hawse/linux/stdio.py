"""Standard streams that the caller has closed."""

from __future__ import annotations

import os
import sys

_STDIO = range(3)


def complete() -> None:
    """Open /dev/null for each of stdin, stdout and stderr that is closed, as Go does for runc (runtime, checkfds()).

    Call it before other files are opened: one with such a number would become the container's stdio. A container whose
    stdin is closed reads the end of file; its output to a closed stdout is discarded.
    """
    for number in _STDIO:
        try:
            os.fstat(number)
        except OSError:
            # open(2) takes the lowest free number, which is this one. Children inherit it, as they do stdio.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    # Python sets a stream to None if its descriptor is closed at the start (sys.stdin).
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115  (there until the program ends)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
