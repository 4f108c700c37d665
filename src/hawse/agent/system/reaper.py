"""Start and reap child processes. PID 1 also reaps the orphans that become its children."""

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
    """Reaps all children in one thread, so that no other wait can consume an exit status."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._exits: dict[int, tuple[float, int]] = {}

    def start(self) -> None:
        """Start the thread. From now on, no other code of this process may call waitpid(2)."""
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
        """Start ``argv[0]``, an absolute path. Returns its pid.

        ``descriptors`` maps the child's fd numbers to ours. ``oom_score_adj`` (proc(5)) is inherited, so this process
        temporarily sets its own, which is safe, because the kernel never kills this process for memory.
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
            self._exits.pop(pid, None)  # of an earlier orphan with the same pid
            self._changed.notify_all()
        return pid

    def wait(self, pid: int, *, since: float = 0.0, forget: Callable[[], None] = lambda: None) -> int:
        """The exit code of a child or adopted orphan, 128+n for signal n.

        ``since``: for an orphan, a time.monotonic() before its start; an exit that was recorded earlier belongs to
        another process with the same pid. ``forget`` is called before :meth:`hold` can use the pid again.
        """
        with self._changed:
            while not self._has_ended(pid, since):
                self._changed.wait()
            forget()
            return self._exits.pop(pid)[1]

    @contextmanager
    def hold(self, pid: int, *, since: float = 0.0) -> Iterator[bool]:
        """Reap no child meanwhile, so that a child keeps its pid. Yields False if the child has ended before."""
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
                    self._changed.wait(0.5)  # until a child is spawned; an orphan may appear without a notification
                continue
            assert ended is not None, "only with WNOHANG"
            if ended.si_code not in _ENDS:
                # A stop of a traced process (hawse.agent.container.sessions), which the kernel reports although it was
                # not requested (Linux kernel/exit.c, wait_task_stopped()). Until the tracer continues the process,
                # waitid(2) would return at once.
                time.sleep(0.001)
                continue
            pid = ended.si_pid
            with self._changed:
                # After waitpid(2), another process may get the pid. Record the exit before any code can use the pid.
                try:
                    reaped, status = os.waitpid(pid, os.WNOHANG)
                except ChildProcessError:
                    reaped = status = 0
                if reaped != pid:
                    # A traced process of another parent (hawse.agent.container.sessions). Its tracer has ended since
                    # waitid(2), so the kernel has given it back to its parent (kernel/ptrace.c, exit_ptrace()).
                    continue
                code = os.waitstatus_to_exitcode(status)
                self._exits[pid] = (time.monotonic(), code if code >= 0 else 128 - code)
                if len(self._exits) > _KEPT:  # exits of orphans for which no code waits
                    del self._exits[next(iter(self._exits))]
                self._changed.notify_all()


def _set_oom_score_adj(value: int) -> None:
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write(str(value))
