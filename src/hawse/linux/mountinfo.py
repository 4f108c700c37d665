"""Read the mounts of a process from /proc/PID/mountinfo (proc_pid_mountinfo(5)). Standard library only."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

_ESCAPED = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    """One mount. ``number`` and ``parent`` are mount ids. ``device``: such as "8:1". ``root``: the path of the mounted
    directory or file within its file system. ``point``: the mount point. ``kind``: the type of the file system.
    ``readonly``: the option of this mount; the file system may be read-only as well."""

    number: int
    parent: int
    device: str
    root: str
    point: str
    kind: str
    readonly: bool = False


def read(path: str = "/proc/self/mountinfo") -> list[Mount]:
    """The mounts of a process; a later mount covers an earlier one at the same path."""
    return parse(read_text(path))


def read_text(path: str = "/proc/self/mountinfo") -> str:
    """The text of a mountinfo file. Bytes that are not UTF-8 are surrogates, as in :func:`os.fsdecode`.

    The kernel escapes a space, tab, newline and backslash of a path (fs/proc_namespace.c, mangle()) and no other
    character, and any user may mount something at a path with a carriage return. So only a newline ends a line.
    """
    with open(path, "rb") as file:
        return os.fsdecode(file.read())


def parse(text: str) -> list[Mount]:
    """Parse the text of a mountinfo file."""
    mounts = []
    for line in filter(None, text.split("\n")):
        fields, _, rest = line.partition(" - ")
        number, parent, device, root, point, options = fields.split(" ")[:6]
        kind, readonly = rest.split(" ")[0], "ro" in options.split(",")
        mounts.append(Mount(int(number), int(parent), device, unescape(root), unescape(point), kind, readonly))
    return mounts


def unescape(text: str) -> str:
    """A path with the octal escapes of spaces, tabs, newlines and backslashes decoded."""
    return _ESCAPED.sub(lambda octal: chr(int(octal[1], 8)), text)
