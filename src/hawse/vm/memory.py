"""A guest's RAM as a file: made, copied and digested by its non-zero pieces; what was never used costs nothing."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
from collections.abc import Iterator

MIB = 1024 * 1024
#: Compared with zeros and written as one; a multiple of every page size of x86 but the huge ones.
PIECE = 16 * 1024
_ZEROS = bytes(PIECE)
_AT_ONCE = 16 * MIB


def make(size: int) -> int:
    """A descriptor of ``size`` bytes of memory that others can map: memfd_create(2)."""
    fd = os.memfd_create("hawse-ram", os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    return fd


def path(fd: int) -> str:
    """A name under which a process that inherits the descriptor can open the memory."""
    return f"/proc/self/fd/{fd}"


def restore(source: int, target: int) -> int:
    """Copy the data of a file into memory of the same size; the bytes copied. Raises OSError.

    By write(2) from a mapping: the one copy there is, and faster than sendfile(2), whose pages go through a pipe.
    """
    size = os.fstat(source).st_size
    if size != os.fstat(target).st_size:
        raise OSError(errno.EIO, "the template's memory has another size")
    copied = 0
    with mmap.mmap(source, size, prot=mmap.PROT_READ) as mapped, memoryview(mapped) as view:
        for start, end in _extents(source):
            position = start
            while position < end:
                position += os.pwrite(target, view[position : min(end, position + _AT_ONCE)], position)
            copied += end - start
    return copied


def save(source: int, target: int) -> int:
    """Copy what is not zero of a memory into an empty file of the same size; the bytes copied. Raises OSError."""
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    copied = 0
    with mmap.mmap(source, size, prot=mmap.PROT_READ) as mapped, memoryview(mapped) as view:
        for start, end in _used(view, source):
            position = start
            while position < end:
                position += os.pwrite(target, view[position:end], position)
            copied += end - start
    return copied


def digest(fd: int) -> str:
    """sha256 over what is not zero and where it is, whatever holes the file has. Raises OSError."""
    size = os.fstat(fd).st_size
    result = hashlib.sha256(str(size).encode())
    if size:
        with mmap.mmap(fd, size, prot=mmap.PROT_READ) as mapped, memoryview(mapped) as view:
            for start, end in _pieces(view, fd):
                result.update(start.to_bytes(8, "big"))
                result.update(view[start:end])
    return result.hexdigest()


def _pieces(view: memoryview, fd: int) -> Iterator[tuple[int, int]]:
    """(start, end) of every piece with something in it."""
    done = 0
    for start, end in _extents(fd):
        for position in range(max(done, start - start % PIECE), end, PIECE):
            done = min(position + PIECE, len(view))
            if view[position:done] != _ZEROS[: done - position]:
                yield position, done


def _used(view: memoryview, fd: int) -> Iterator[tuple[int, int]]:
    """The pieces, neighbours joined."""
    begin = end = 0
    for start, stop in _pieces(view, fd):
        if start == end and stop - begin <= _AT_ONCE:
            end = stop
            continue
        if begin != end:
            yield begin, end
        begin, end = start, stop
    if begin != end:
        yield begin, end


def _extents(fd: int) -> Iterator[tuple[int, int]]:
    """(start, end) of the file's parts that are no holes (lseek(2), SEEK_DATA)."""
    position = 0
    while True:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        position = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, position
