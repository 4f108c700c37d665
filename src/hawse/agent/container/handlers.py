"""Signals to a program that has only just been started.

The first process of a PID namespace does not get a signal that it neither handles nor blocks (pid_namespaces(7)). Under
runc a program has set its handlers long before an engine can send a signal. Here it may still be loading, over a shared
file system and on a slow processor, and the signal would be lost: so the agent waits for the handler.
"""

from __future__ import annotations

import signal
import time

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from collections.abc import Callable

#: For so long after its start, in seconds, a program may still be on its way to its handlers.
SECONDS = 2.0
_POLL = 0.005
#: No handler: these cannot have one, and of the others nothing is done without one (signal(7)).
NEVER_LOST = (signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH)


def await_handler(
    pid: int, number: int, *, started: float, lives: Callable[[], bool], proc: str = "/proc", seconds: float = SECONDS
) -> None:
    """Wait until the process would get the signal, or could not for another reason, or the time since its start, in
    seconds of CLOCK_MONOTONIC, is over."""
    while time.monotonic() < started + seconds and lives() and is_lost(pid, number, proc=proc):
        time.sleep(_POLL)  # nothing tells of a handler


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
