"""The fields of processes that `ps` shows, from /proc (proc(5))."""

from __future__ import annotations

import os

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from collections.abc import Iterable

_MAX_COMMAND = 4096
_MOST = 1000
_PTS_MAJORS = range(136, 144)


def listing(pids: Iterable[int], *, proc: str = "/proc") -> list[dict[str, object]]:
    """The processes, at most a thousand. ``age`` is seconds since the start, ``used`` is seconds of CPU time.

    An entry's pids are those in the PID namespace of its process; a parent outside of the namespace is 0.

    Use the result only for display: a pid may belong to another process by the time that it is read.
    """
    ticks = os.sysconf("SC_CLK_TCK")
    with open(f"{proc}/uptime") as file:
        now = float(file.read().split()[0])
    processes: list[dict[str, object]] = []
    for pid in sorted(pids)[:_MOST]:
        try:
            with open(f"{proc}/{pid}/stat", "rb") as stat:
                name, _, rest = stat.read().rpartition(b")")
            with open(f"{proc}/{pid}/cmdline", "rb") as cmdline:
                command = cmdline.read(_MAX_COMMAND).rstrip(b"\0").replace(b"\0", b" ")
            fields = rest.split()
            own, parent = _inner(proc, str(pid)), _inner(proc, fields[1].decode())
            if len(parent) < len(own):  # the parent is outside of the container
                parent = ["0"]
            processes.append({
                "uid": os.stat(f"{proc}/{pid}").st_uid,
                "pid": int(own[-1]),
                "parent": int(parent[-1]),
                "age": max(0, int(now - int(fields[19]) / ticks)),
                "terminal": _terminal(int(fields[4])),
                "used": (int(fields[11]) + int(fields[12])) // ticks,
                "command": (command or b"[" + name.partition(b"(")[2] + b"]").decode(errors="replace"),
            })  # fmt: skip
        except (OSError, ValueError, IndexError):
            continue  # the process has ended
    return processes


def _inner(proc: str, pid: str) -> list[str]:
    """A process's pids: from the outermost PID namespace that is visible here to the process's own."""
    try:
        with open(f"{proc}/{pid}/status", "rb") as file:
            for line in file:
                if line.startswith(b"NSpid:"):
                    return line.decode().split()[1:]
    except OSError:
        pass
    return ["0"]


def _terminal(number: int) -> str:
    major, minor = os.major(number), os.minor(number)
    return f"pts/{minor + (major - _PTS_MAJORS[0]) * 256}" if major in _PTS_MAJORS else "?"
