"""A container's processes as the guest reports them, and as `ps -ef` prints them. Pure."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

_TITLES = ("UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD")
_MOST = 1000
_MAX_TEXT = 4096


class Row(NamedTuple):
    """A process. ``age`` is the seconds since its start, ``used`` its CPU time in seconds."""

    uid: int
    pid: int
    parent: int
    age: int
    terminal: str
    used: int
    command: str


class Process(Protocol):
    """A process as the guest reports it: the fields of :class:`Row`."""

    @property
    def uid(self) -> int: ...
    @property
    def pid(self) -> int: ...
    @property
    def parent(self) -> int: ...
    @property
    def age(self) -> int: ...
    @property
    def terminal(self) -> str: ...
    @property
    def used(self) -> int: ...
    @property
    def command(self) -> str: ...


def rows(processes: Sequence[Process]) -> list[Row]:
    """At most a thousand processes, without negative numbers, and without control characters in texts."""
    return [
        Row(
            uid=_bounded(process.uid),
            pid=_bounded(process.pid),
            parent=_bounded(process.parent),
            age=_bounded(process.age),
            terminal=_printable(process.terminal),
            used=_bounded(process.used),
            command=_printable(process.command),
        )
        for process in processes[:_MOST]
    ]


def table(rows: Iterable[Row], *, now: float) -> list[str]:
    """Format lines of text, the first with the titles; ``now`` is in seconds since the epoch."""
    cells = [list(_TITLES)]
    for uid, pid, parent, age, terminal, used, command in rows:
        percent = min(99, used * 100 // age) if age else 0
        day = 24 * 3600
        began = time.strftime("%H:%M" if age < day else "%b%d", time.localtime(now - min(age, int(now))))
        clock = f"{used // 3600:02}:{used // 60 % 60:02}:{used % 60:02}"
        cells.append([str(uid), str(pid), str(parent), str(percent), began, terminal, clock, command])
    widths = [max(len(row[column]) for row in cells) for column in range(len(_TITLES) - 1)]
    return [" ".join([*(c.ljust(w) for c, w in zip(row[:-1], widths, strict=True)), row[-1]]) for row in cells]


def _bounded(number: int) -> int:
    return min(max(number, 0), 2**63)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text[:_MAX_TEXT])
