"""Processes of the host for the code under test: any combination of a pid and a pidfd."""

from __future__ import annotations

import os
import signal

from hawse.linux.processes import Process


class Lives(Process):
    """A live process with any pid."""

    def __init__(self, pid: int) -> None:
        super().__init__(pid, -1)

    def is_alive(self) -> bool:
        return True


def ended_descriptor() -> int:
    """A pidfd of a process that has ended and was waited for."""
    child = os.fork()
    if child == 0:
        signal.pause()
    fd = os.pidfd_open(child)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return fd


def reused(pid: int = 0) -> Process:
    """A process that has ended and whose pid was reused: by this process, or by ``pid``."""
    return Process(pid or os.getpid(), ended_descriptor())
