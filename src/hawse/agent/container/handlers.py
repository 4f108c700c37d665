"""Signals to a program that has just been started: the agent waits until the program has set its signal handlers.

The first process of a PID namespace does not receive a signal that it neither handles nor blocks (pid_namespaces(7)).
Under runc a program has set its handlers long before an engine can send a signal. In the guest the program may still be
loading, from a shared file system and on a slow CPU. The signal would be lost.
"""

from __future__ import annotations

import signal
import time

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from collections.abc import Callable

#: Seconds after its start in which a program may not have set its handlers yet.
SECONDS = 2.0
_POLL = 0.005
#: Signals without a handler to wait for: a program cannot handle them, or their default does not end it (signal(7)).
NEVER_LOST = (signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH)


def await_handler(
    pid: int, number: int, *, started: float, lives: Callable[[], bool], proc: str = "/proc", seconds: float = SECONDS
) -> None:
    """Wait while the process would lose the signal, at most until ``seconds`` after its start.

    ``started`` is the time of its start in seconds of CLOCK_MONOTONIC. ``lives`` returns whether it still exists.
    """
    while time.monotonic() < started + seconds and lives() and is_lost(pid, number, proc=proc):
        time.sleep(_POLL)  # the kernel sends no event for a new handler


def is_lost(pid: int, number: int, *, proc: str = "/proc") -> bool:
    """Whether the process is the first of its PID namespace, and does not handle, block or ignore the signal."""
    if number in NEVER_LOST:
        return False
    try:
        with open(f"{proc}/{pid}/status") as file:
            fields = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    except OSError:
        return False
    if fields.get("NSpid", "").split()[-1:] != ["1"]:
        return False
    bit = 1 << number - 1
    return not any(int(fields.get(name, "0"), 16) & bit for name in ("SigCgt", "SigBlk", "SigIgn"))
