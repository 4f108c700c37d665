"""A process of a container, referred to safely: its pid is not used after another process may have got it."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager

from hawse.agent.streams.stdio import Stdio
from hawse.agent.system.reaper import Reaper
from hawse.errors import StateError

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from collections.abc import Iterator


class Process:
    """One process of a container: the first one, or one of an exec."""

    def __init__(self, number: int, stdio: Stdio, reaper: Reaper) -> None:
        self.number = number
        self._reaper = reaper
        self.stdio = stdio
        self.since = time.monotonic()  # the process is started later than this
        self.pid = 0  # reset to 0 when it has been reaped: then another process may get its pid

    @contextmanager
    def held(self, problem: str) -> Iterator[int]:
        """Hold the pid of this process, so that no other process can get it.

        Hold it only briefly: meanwhile the agent reaps no child. Raises :class:`StateError` with ``problem`` if the
        process has ended.
        """
        with self._reaper.hold(self.pid, since=self.since) as lives:
            if not self.pid or not lives:
                raise StateError(problem)
            yield self.pid

    def signal(self, number: int) -> None:
        """Send a signal. Raises :class:`StateError` if the process has ended."""
        with self.held("container not running: os: process already finished") as pid:
            os.kill(pid, number)

    def open(self, path: str, problem: str) -> int:
        """A descriptor of a file or directory below /proc/PID of this process. Raises as :meth:`held`."""
        with self.held(problem) as pid:
            try:
                return os.open(f"/proc/{pid}/{path}", os.O_RDONLY)
            except OSError:  # the process has ended and has not been reaped yet
                raise StateError(problem) from None

    def wait(self) -> int:
        """Wait until the process has ended. Returns its exit code."""
        return self._reaper.wait(self.pid, since=self.since, forget=self._forget)

    def program(self) -> tuple[int, int] | None:
        """Device and inode of the program that the process executes (proc(5), exe); None if it has ended.

        If another process has got its pid by now, the result is that of another program.
        """
        try:
            status = os.stat(f"/proc/{self.pid}/exe")
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def _forget(self) -> None:
        self.pid = 0
