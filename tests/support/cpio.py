"""An independent reader of "newc" archives (Linux Documentation/driver-api/early-userspace/buffer-format.rst)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """``mode`` includes the file type; ``device``: major and minor of a device node."""

    mode: int
    content: bytes
    device: tuple[int, int]


def read_archive(data: bytes) -> dict[str, Entry]:
    """The entries by path. Asserts that the archive is aligned, has no owners and times, and ends with a trailer."""
    entries: dict[str, Entry] = {}
    inodes: set[int] = set()
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        inode, mode, uid, gid, links, mtime, size = fields[:7]
        name_size = fields[11]
        assert (uid, gid, links, mtime, fields[12]) == (0, 0, 1, 0, 0)
        assert inode not in inodes
        inodes.add(inode)
        name = data[at + 110 : at + 110 + name_size - 1].decode()
        at += (110 + name_size + 3) // 4 * 4
        content = data[at : at + size]
        at += (size + 3) // 4 * 4
        if name == "TRAILER!!!":
            assert at == len(data)
            return entries
        assert name not in entries
        entries[name] = Entry(mode, content, (fields[9], fields[10]))
