"""Mounts of a process as /proc/PID/mountinfo lists them (proc_pid_mountinfo(5)). Standard library only."""

from __future__ import annotations

import re
from dataclasses import dataclass

_ESCAPED = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    """``device``: as "8:1". ``root``: the path, in its file system, of the directory or file that is mounted at
    ``point``. ``number`` and ``parent`` are ids of mounts."""

    number: int
    parent: int
    device: str
    root: str
    point: str
    kind: str


def read(path: str = "/proc/self/mountinfo") -> list[Mount]:
    """The mounts of a process, in the order in which they cover each other."""
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return parse(file.read())


def parse(text: str) -> list[Mount]:
    """The lines of a mountinfo file."""
    mounts = []
    for line in text.splitlines():
        fields, _, rest = line.partition(" - ")
        number, parent, device, root, point = fields.split(" ")[:5]
        mounts.append(Mount(int(number), int(parent), device, unescape(root), unescape(point), rest.split(" ")[0]))
    return mounts


def unescape(text: str) -> str:
    """A path without the octal escapes of spaces, tabs, newlines and backslashes."""
    return _ESCAPED.sub(lambda octal: chr(int(octal[1], 8)), text)
