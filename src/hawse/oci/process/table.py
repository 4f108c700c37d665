"""A container's processes as the guest tells them, checked, and as `ps -ef` prints them. Pure."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from hawse.errors import VmError

_TYPES = [int, int, int, int, str, int, str]
_TITLES = ("UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD")
_MOST = 1000


def check(told: object) -> list[list[Any]]:
    """What the guest told, as far as it is [uid, pid, parent's pid, age, terminal, CPU seconds, command]; bounded.

    The texts go to somebody's terminal: nothing in them may steer one.
    """
    if not isinstance(told, list):
        raise VmError("the guest does not say which processes it has")
    rows = [row for row in told[:_MOST] if isinstance(row, list) and [type(value) for value in row] == _TYPES]
    return [[_printable(value) if isinstance(value, str) else min(max(value, 0), 2**63) for value in r] for r in rows]


def table(rows: Sequence[Sequence[Any]], *, now: float) -> list[str]:
    """Lines, the first with the titles; ``now`` in seconds since the epoch."""
    cells = [list(_TITLES)]
    for uid, pid, parent, age, terminal, used, command in rows:
        percent = min(99, used * 100 // age) if age else 0
        day = 24 * 3600
        began = time.strftime("%H:%M" if age < day else "%b%d", time.localtime(now - min(age, int(now))))
        clock = f"{used // 3600:02}:{used // 60 % 60:02}:{used % 60:02}"
        cells.append([str(uid), str(pid), str(parent), str(percent), began, terminal, clock, command])
    widths = [max(len(row[column]) for row in cells) for column in range(len(_TITLES) - 1)]
    return [" ".join([*(c.ljust(w) for c, w in zip(row[:-1], widths, strict=True)), row[-1]]) for row in cells]


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text[:4096])
