"""Children: started here, waited for here. PID 1 also collects the orphans that the kernel hands to it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence

_KEPT = 1024


class Reaper:
    """One thread waits for all children, so that nobody else's wait can be stolen."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._exits: dict[int, tuple[float, int]] = {}

    def start(self) -> None:
        """Begin collecting; from here on nothing else in this process may call waitpid."""
        threading.Thread(target=self._collect, name="reaper", daemon=True).start()

    def spawn(
        self,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str],
        descriptors: Mapping[int, int] | None = None,
        new_session: bool = False,
        oom_score_adj: int = 0,
    ) -> int:
        """Start ``argv[0]``, an absolute path, with ``{child's fd: our fd}`` in place; its pid.

        ``oom_score_adj`` (proc(5)) is inherited: this process, which is never killed for memory, has it meanwhile.
        """
        actions = [(os.POSIX_SPAWN_DUP2, ours, theirs) for theirs, ours in (descriptors or {}).items()]
        with self._changed:
            if oom_score_adj:
                _set_oom_score_adj(oom_score_adj)
            try:
                pid = os.posix_spawn(
                    argv[0],
                    list(argv),
                    dict(environment),
                    file_actions=actions,
                    setsid=new_session,
                    setsigdef=range(1, 32),
                )
            finally:
                if oom_score_adj:
                    _set_oom_score_adj(0)
            self._exits.pop(pid, None)  # an orphan that had the same number before
            self._changed.notify_all()
        return pid

    def wait(self, pid: int, *, since: float = 0.0) -> int:
        """The exit code of a child or adopted orphan, 128+n for signal n.

        ``since``: for an orphan, a time.monotonic() before its birth; an exit recorded earlier was a namesake's.
        """
        with self._changed:
            while pid not in self._exits or self._exits[pid][0] < since:
                self._changed.wait()
            return self._exits.pop(pid)[1]

    def _collect(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, 0)
            except ChildProcessError:
                with self._changed:
                    self._changed.wait(0.5)  # until something is spawned; an orphan may come without notice
                continue
            code = os.waitstatus_to_exitcode(status)
            with self._changed:
                self._exits[pid] = (time.monotonic(), code if code >= 0 else 128 - code)
                if len(self._exits) > _KEPT:  # orphans nobody asks for
                    del self._exits[next(iter(self._exits))]
                self._changed.notify_all()


def _set_oom_score_adj(value: int) -> None:
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write(str(value))
