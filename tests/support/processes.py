"""Processes of this host, from /proc. Each function also accepts processes that end while it reads.

Standard library only: programs in the lab import this module.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

#: Numbers on x86-64 of read, poll, recvfrom, recvmsg and ppoll (Linux arch/x86/entry/syscalls/syscall_64.tbl).
_INPUT_CALLS = {"0", "7", "45", "47", "271"}


def all_pids() -> list[int]:
    """The pids of all processes of this PID namespace."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def children(pid: int) -> list[int]:
    """The children of all threads of a process. Raises OSError when the process has ended."""
    pids: list[int] = []
    for thread in os.listdir(f"/proc/{pid}/task"):
        with suppress(FileNotFoundError):  # this thread has ended
            pids += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())
    return pids


def descendants(pid: int) -> Iterator[int]:
    """The descendants of a process, each one before its own children."""
    for child in children(pid):
        yield child
        yield from descendants(child)


def qemu_of(monitor: int) -> int:
    """The pid of the QEMU that a monitor has started. Raises AssertionError if it has not started one."""
    pids = [pid for pid in children(monitor) if "qemu" in program_of(pid)]
    assert pids, f"monitor {monitor} runs no QEMU"
    return pids[0]


def name_of(pid: int) -> str:
    """The name of a process, its first 15 characters. Raises OSError when the process has ended."""
    return Path(f"/proc/{pid}/comm").read_text().strip()


def program_of(pid: int) -> str:
    """The file name of a process's program; empty when the process has ended, and for threads of the kernel."""
    try:
        return os.path.basename(os.readlink(f"/proc/{pid}/exe"))
    except OSError:
        return ""


def command_line(pid: int) -> str:
    """A process's arguments, separated by spaces; empty when the process has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def with_words(words: str) -> list[int]:
    """The pids of the other processes whose arguments contain these words."""
    return [pid for pid in all_pids() if pid != os.getpid() and words in command_line(pid)]


def status_of(pid: int) -> dict[str, str]:
    """The fields of /proc/PID/status; empty when the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def is_asleep(pid: int) -> bool:
    """Whether every thread of a process sleeps, and so waits for something that others do."""
    for thread in os.listdir(f"/proc/{pid}/task"):
        try:
            state = Path(f"/proc/{pid}/task/{thread}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:  # this thread has just ended, so the process was not asleep
            return False
        if state != "S":
            return False
    return True


def waits_for_input(thread: threading.Thread) -> bool:
    """Whether a thread of this process is blocked in a system call that waits for a file descriptor."""
    call = Path(f"/proc/self/task/{thread.native_id}/syscall").read_text().split()[0]
    return call in _INPUT_CALLS


def descriptors(pid: int) -> dict[int, str]:
    """The targets of a process's file descriptors by their numbers; empty when the process has ended."""
    targets = {}
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            try:
                targets[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
            except FileNotFoundError:  # closed since, such as the one that this process lists its own directory with
                continue
    except OSError:
        return {}
    return targets


def holders(is_sought: Callable[[str], bool]) -> dict[int, list[str]]:
    """The targets of descriptors for which ``is_sought`` returns true, by the pids of the processes that have them."""
    by_pid = {pid: [target for target in descriptors(pid).values() if is_sought(target)] for pid in all_pids()}
    return {pid: targets for pid, targets in by_pid.items() if targets}
