"""Children: started here, waited for here. PID 1 also collects the orphans that the kernel hands to it."""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

_KEPT = 1024
_ENDS = (os.CLD_EXITED, os.CLD_KILLED, os.CLD_DUMPED)


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

    def wait(self, pid: int, *, since: float = 0.0, forget: Callable[[], None] = lambda: None) -> int:
        """The exit code of a child or adopted orphan, 128+n for signal n.

        ``since``: for an orphan, a time.monotonic() before its birth; an exit recorded earlier was a namesake's.
        ``forget`` is called before anybody may use the pid again by :meth:`hold`.
        """
        with self._changed:
            while not self._has_ended(pid, since):
                self._changed.wait()
            forget()
            return self._exits.pop(pid)[1]

    @contextmanager
    def hold(self, pid: int, *, since: float = 0.0) -> Iterator[bool]:
        """While this lasts no child is waited for, so that the pid of one stays its own. False: it has ended before."""
        with self._changed:
            yield not self._has_ended(pid, since)

    def _has_ended(self, pid: int, since: float) -> bool:
        return pid in self._exits and self._exits[pid][0] >= since

    def _collect(self) -> None:
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
            except ChildProcessError:
                with self._changed:
                    self._changed.wait(0.5)  # until something is spawned; an orphan may come without notice
                continue
            assert ended is not None, "only with WNOHANG"
            if ended.si_code not in _ENDS:
                # A stop of a traced process (hawse.agent.container.sessions), reported without being asked for (Linux
                # kernel/exit.c, wait_task_stopped()): its tracer ends it, and until then this would return at once.
                time.sleep(0.001)
                continue
            pid = ended.si_pid
            with self._changed:
                # Its pid may be another process's from here on, and this is on record before anybody can use it.
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                self._exits[pid] = (time.monotonic(), code if code >= 0 else 128 - code)
                if len(self._exits) > _KEPT:  # orphans nobody asks for
                    del self._exits[next(iter(self._exits))]
                self._changed.notify_all()


def _set_oom_score_adj(value: int) -> None:
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write(str(value))
