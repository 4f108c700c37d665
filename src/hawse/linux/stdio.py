"""Standard streams that the caller has closed."""

from __future__ import annotations

import os
import sys

_STDIO = range(3)


def complete() -> None:
    """Open /dev/null for each of stdin, stdout and stderr that is closed, as Go does for runc (runtime, checkfds()).

    To be called before anything else stays open: a file that gets one of these numbers would be the container's stdio.
    A container whose stdin is closed reads the end of file, and what it writes to a closed stdout is discarded.
    """
    for number in _STDIO:
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number, which this one is: those below it are open. Children inherit it, as they do stdio.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    # Python has None for a stream whose descriptor was closed when it started (sys, stdin).
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115  (there until the program ends)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
