"""Read the mounts of a process from /proc/PID/mountinfo (proc_pid_mountinfo(5)). Standard library only."""

from __future__ import annotations

import re
from dataclasses import dataclass

_ESCAPED = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    """One mount. ``number`` and ``parent`` are mount ids. ``device``: such as "8:1". ``root``: the path of the mounted
    directory or file within its file system. ``point``: the mount point. ``kind``: the type of the file system."""

    number: int
    parent: int
    device: str
    root: str
    point: str
    kind: str


def read(path: str = "/proc/self/mountinfo") -> list[Mount]:
    """The mounts of a process; a later mount covers an earlier one at the same path."""
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return parse(file.read())


def parse(text: str) -> list[Mount]:
    """Parse the text of a mountinfo file."""
    mounts = []
    for line in text.splitlines():
        fields, _, rest = line.partition(" - ")
        number, parent, device, root, point = fields.split(" ")[:5]
        mounts.append(Mount(int(number), int(parent), device, unescape(root), unescape(point), rest.split(" ")[0]))
    return mounts


def unescape(text: str) -> str:
    """A path with the octal escapes of spaces, tabs, newlines and backslashes decoded."""
    return _ESCAPED.sub(lambda octal: chr(int(octal[1], 8)), text)
