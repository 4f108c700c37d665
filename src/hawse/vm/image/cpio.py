"""Write an initial ramfs: a "newc" cpio archive (Linux Documentation/driver-api/early-userspace/buffer-format.rst).

No library in Debian or on PyPI writes this format with fixed times and inode numbers.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from typing import BinaryIO

DeviceNode = tuple[str, int, int, int]
"""Path, mode with type, major, minor."""


def write_archive(tree: str, output: BinaryIO, *, nodes: Iterable[DeviceNode] = ()) -> int:
    """Archive ``tree`` in sorted order, with root as owner and modification time 0; returns the bytes written.

    The same tree gives the same bytes, independent of its path and of the time.
    """
    writer = _Writer(output)
    for path in _walk(tree):
        status = os.lstat(os.path.join(tree, path))
        if stat.S_ISREG(status.st_mode):
            with open(os.path.join(tree, path), "rb") as file:
                writer.entry(path, status.st_mode, file.read())
        elif stat.S_ISLNK(status.st_mode):
            writer.entry(path, stat.S_IFLNK | 0o777, os.readlink(os.path.join(tree, path)).encode())
        elif stat.S_ISDIR(status.st_mode):
            writer.entry(path, status.st_mode)
    for path, mode, major, minor in nodes:
        writer.entry(path, mode, device=(major, minor))
    writer.entry("TRAILER!!!", 0)
    return writer.size


def _walk(tree: str, below: str = "") -> Iterable[str]:
    for name in sorted(os.listdir(os.path.join(tree, below))):
        path = os.path.join(below, name)
        yield path
        full = os.path.join(tree, path)
        if os.path.isdir(full) and not os.path.islink(full):
            yield from _walk(tree, path)


class _Writer:
    def __init__(self, output: BinaryIO) -> None:
        self._output = output
        self._number = 0
        self.size = 0

    def entry(self, path: str, mode: int, data: bytes = b"", *, device: tuple[int, int] = (0, 0)) -> None:
        self._number += 1
        name = path.encode() + b"\0"
        # inode, mode, uid, gid, links, mtime, size, device of the file (2), device of the node (2), size of name, check
        fields = (self._number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name), 0)
        self._write(b"070701" + b"".join(b"%08X" % field for field in fields) + name)
        self._write(data)

    def _write(self, data: bytes) -> None:
        padded = data + bytes(-len(data) % 4)
        self._output.write(padded)
        self.size += len(padded)
