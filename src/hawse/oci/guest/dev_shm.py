"""Shared memory that engines mount at /dev/shm. The guest mounts its own: a VM cannot share pages with the host."""

from __future__ import annotations

import hashlib
import re

from hawse.linux import mountinfo

DESTINATION = "/dev/shm"
_UNITS = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3}


def tmpfs_size(source: str) -> int:
    """The size in bytes of the tmpfs mounted at this path of the host; 0 if none is mounted or it has no limit."""
    return find_tmpfs(mountinfo.read_text(), source)


def find_tmpfs(table: str, source: str) -> int:
    """Like :func:`tmpfs_size`, from the text of /proc/self/mountinfo (proc(5)); the last mount at a path counts."""
    size = 0
    for line in table.split("\n"):
        fields, _, rest = line.partition(" - ")
        words, kind = fields.split(" "), rest.split(" ")
        if len(words) < 6 or len(kind) < 3 or _unescape(words[4]) != source:
            continue
        limit = re.search(r"(?:^|,)size=(\d+)([kmg]?)(?:,|$)", kind[2])
        size = int(limit[1]) * _UNITS[limit[2]] if kind[0] == "tmpfs" and limit else 0
    return size


def guest_name(source: str) -> str:
    """The name of the guest's file system that replaces this path of the host."""
    return hashlib.sha256(source.encode(errors="surrogateescape")).hexdigest()[:16]


def _unescape(path: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)
