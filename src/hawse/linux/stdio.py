"""Standard streams that the caller has closed."""

from __future__ import annotations

import os
import select
import sys

_STDIO = range(3)


def complete() -> None:
    """Open /dev/null for each of stdin, stdout and stderr that is closed, as Go does for runc (runtime, checkfds()).

    Call it before other files are opened: a file with the number 0, 1 or 2 would become the container's stdio. A
    container whose stdin is closed reads the end of file; its output to a closed stdout is discarded.
    """
    for number in _STDIO:
        try:
            os.fstat(number)
        except OSError:
            # open(2) uses the lowest free number, which is this one. Children inherit the descriptor like other stdio.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    # Python sets a stream to None if its descriptor is closed at startup (documentation of sys.stdin).
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115  (open until the program ends)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


def has_no_reader(fd: int) -> bool:
    """Whether the reading end of a pipe, or the other end of a socket, is closed (poll(2), POLLERR and POLLHUP)."""
    poll = select.poll()
    poll.register(fd, 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
