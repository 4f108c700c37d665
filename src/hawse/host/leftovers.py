"""Record and kill programs that may outlive their monitor. Standard library only.

QEMU and virtiofsd ask the kernel to kill them when the monitor ends. The kernel drops that request
when SELinux changes a program's label at its execution (Linux security/selinux/hooks.c,
selinux_bprm_committing_creds()), and a program without a jail can withdraw it.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress

from hawse.errors import HostError
from hawse.host.cgroup import control_cgroup
from hawse.linux.processes import Process, has_ended
from hawse.state.store import start_time

_RECORD = "programs"
_SECONDS = 5.0
#: On a host with free CPU time, a killed process ends faster.
_HURRY_SECONDS = 0.5


def note(directory: str, pid: int) -> None:
    """Record a child that was just started. Raises :class:`HostError`."""
    path = f"{directory}/{_RECORD}"
    try:
        with open(path, "a") as file:
            file.write(f"{pid} {start_time(pid)}\n")
    except OSError as error:
        raise HostError(f"cannot record the sandbox's processes in {path}: {error.strerror}") from None


def end(directory: str) -> list[str]:
    """Kill recorded programs that still run, and wait for their end. Returns warnings."""
    warnings = []
    for pid, start in _read(directory):
        with suppress(OSError):
            process = os.pidfd_open(pid)
            try:
                # Compared after the open: a process that got the pid later has another start time.
                if start_time(pid) != start:
                    continue
                signal.pidfd_send_signal(process, signal.SIGKILL)
                if not has_ended(process, seconds=_HURRY_SECONDS):
                    control_cgroup.hasten(directory, Process(pid, os.dup(process)))
                if not has_ended(process, seconds=_SECONDS):
                    warnings.append(f"the process {pid} of the sandbox does not end")
            finally:
                os.close(process)
    return warnings


def _read(directory: str) -> list[tuple[int, int]]:
    try:
        with open(f"{directory}/{_RECORD}") as file:
            return [(int(pid), int(start)) for pid, start in (line.split() for line in file)]
    except (OSError, ValueError):
        return []
