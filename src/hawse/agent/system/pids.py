"""Signals to processes that were found by their pids, which may have gone to other processes by then."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack, suppress

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

#: Descriptors that are open at a time.
_PIECE = 128


def signal_each(find: Callable[[], Iterable[int]], number: int) -> None:
    """Signal every process that ``find`` returns: once more after a descriptor of it was opened (pidfd_open(2)).

    A process that has got the pid of one that ended is not found the second time, or is one that is to be signalled.
    """
    pids = sorted(set(find()))
    for start in range(0, len(pids), _PIECE):
        with ExitStack() as undo:
            opened = {}
            for pid in pids[start : start + _PIECE]:
                with suppress(OSError):  # it has ended
                    opened[pid] = os.pidfd_open(pid)
                    undo.callback(os.close, opened[pid])
            for pid in set(find()) & opened.keys():
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(opened[pid], number)
