"""Processes of the host as the code under test sees them: by a pid and a descriptor, with any mixture of the two."""

from __future__ import annotations

import os
import signal

from hawse.linux.processes import Process


class Lives(Process):
    """A process that is alive, with any pid."""

    def __init__(self, pid: int) -> None:
        super().__init__(pid, -1)

    def is_alive(self) -> bool:
        return True


def ended_descriptor() -> int:
    """A descriptor of a process that has ended and was waited for."""
    child = os.fork()
    if child == 0:
        signal.pause()
    fd = os.pidfd_open(child)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return fd


def reused(pid: int = 0) -> Process:
    """A process that has ended, and whose pid has gone to another one: to this process, or to ``pid``."""
    return Process(pid or os.getpid(), ended_descriptor())
