"""Signal processes that were found by their pids, without signalling others that have got these pids since."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack, suppress

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

#: The number of pidfds that are open at a time.
_BATCH = 128


def signal_each(find: Callable[[], Iterable[int]], number: int) -> None:
    """Signal every process that ``find`` returns, and still returns after its pidfd was opened (pidfd_open(2)).

    If another process has got a pid in between, the second ``find`` does not return it, or it is to be signalled, too.
    """
    pids = sorted(set(find()))
    for start in range(0, len(pids), _BATCH):
        with ExitStack() as undo:
            opened = {}
            for pid in pids[start : start + _BATCH]:
                with suppress(OSError):  # the process has ended
                    opened[pid] = os.pidfd_open(pid)
                    undo.callback(os.close, opened[pid])
            for pid in set(find()) & opened.keys():
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(opened[pid], number)
