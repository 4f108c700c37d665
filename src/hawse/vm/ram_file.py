"""A guest's RAM: created as memory that other processes can map, saved as a file of its non-zero pieces.

File format: the size of the memory and the number of pieces; then start and end of each piece in the memory; zeros up
to a whole page; then the pieces one after the other. All numbers have eight bytes, big-endian. The file has no holes:
some file systems (9p, NFS before 4.2) do not distinguish them from data, so all of the memory would be read and
written.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack

MIB = 1024 * 1024
#: The unit that is compared with zeros and written, in bytes: a multiple of x86's page size, without huge pages.
PIECE = 16 * 1024
_ZEROS = bytes(PIECE)
_AT_ONCE = 16 * MIB
_HEAD = struct.Struct(">QQ")
_PAGE = 4096


def make(size: int, *, page_kib: int = 0) -> int:
    """Create ``size`` bytes of memory that other processes can map; returns its file descriptor (memfd_create(2)).

    ``page_kib``: use huge pages of this size in KiB, and reserve all of them now. Without a reservation QEMU would die
    of SIGBUS when it touches a page that the host cannot supply. A mapping makes the reservation, which lasts for the
    life of the file (Linux Documentation/mm/hugetlbfs_reserv.rst). Raises OSError.
    """
    fd = create(size, page_kib=page_kib)
    if page_kib:
        try:
            mmap.mmap(fd, size).close()
        except OSError:
            os.close(fd)
            raise
    return fd


def create(size: int, *, page_kib: int = 0) -> int:
    """Like :func:`make`, but without reserving huge pages. Raises OSError."""
    flags = os.MFD_CLOEXEC
    if page_kib:
        flags |= os.MFD_HUGETLB | (page_kib * 1024).bit_length() - 1 << os.MFD_HUGE_SHIFT
    fd = os.memfd_create("hawse-ram", flags)
    try:
        os.ftruncate(fd, size)
    except OSError:
        os.close(fd)
        raise
    return fd


def path(fd: int) -> str:
    """A path by which a process that inherits the file descriptor can open the memory."""
    return f"/proc/self/fd/{fd}"


def restore(source: int, target: int, *, mapped: bool | None = None) -> int:
    """Copy a saved file into memory of the original size; returns the number of bytes copied. Raises OSError.

    It uses write(2) from a mapping, which copies once and is faster than sendfile(2), whose pages go through a pipe.
    Huge pages cannot be written to (Linux fs/hugetlbfs/inode.c has no write_iter): the target is mapped, and the file
    is read into the mapping. ``mapped`` chooses the method; None: according to the pages of ``target``.
    """
    mapped = is_huge(target) if mapped is None else mapped
    size = os.fstat(source).st_size
    if size < _HEAD.size:
        raise OSError(errno.EIO, "the template's memory is cut short")
    with mmap.mmap(source, size, prot=mmap.PROT_READ) as file, memoryview(file) as view, ExitStack() as undo:
        buffer = None
        if mapped:
            buffer = undo.enter_context(memoryview(undo.enter_context(mmap.mmap(target, os.fstat(target).st_size))))
        position = begin = _begin_of_data(view)
        for start, end in _read_pieces(view, os.fstat(target).st_size):
            while start < end:
                length = min(end - start, _AT_ONCE)
                if buffer is None:
                    written = os.pwrite(target, view[position : position + length], start)
                else:
                    written = os.preadv(source, [buffer[start : start + length]], position)
                start, position = start + written, position + written
        return position - begin


def save(source: int, target: int) -> int:
    """Write the non-zero pieces of a memory to an empty file; returns the number of bytes copied. Raises OSError."""
    size = os.fstat(source).st_size
    with mmap.mmap(source, size, prot=mmap.PROT_READ) as mapped, memoryview(mapped) as view:
        pieces = list(_used(view, source))
        head = _HEAD.pack(size, len(pieces)) + b"".join(_HEAD.pack(*piece) for piece in pieces)
        position = begin = os.pwrite(target, head + bytes(-len(head) % _PAGE), 0)
        for start, end in pieces:
            while start < end:
                written = os.pwrite(target, view[start:end], position)
                start, position = start + written, position + written
        return position - begin


def digest(fd: int) -> str:
    """SHA256 of a file in hexadecimal. Raises OSError."""
    result = hashlib.sha256()
    size = os.fstat(fd).st_size
    if size:
        with mmap.mmap(fd, size, prot=mmap.PROT_READ) as mapped:
            result.update(mapped)
    return result.hexdigest()


def is_huge(fd: int) -> bool:
    """Whether the memory consists of huge pages: its block size is then the size of a huge page (Linux
    fs/hugetlbfs/inode.c, hugetlbfs_statfs())."""
    return os.fstatvfs(fd).f_bsize > mmap.PAGESIZE


def _begin_of_data(view: memoryview) -> int:
    _, count = _HEAD.unpack(view[: _HEAD.size])
    length: int = _HEAD.size * (1 + count)
    return length + -length % _PAGE


def _read_pieces(view: memoryview, size: int) -> Iterator[tuple[int, int]]:
    """The file's table of pieces, checked against the file and the memory. Raises OSError."""
    saved, count = _HEAD.unpack(view[: _HEAD.size])
    if saved != size:
        raise OSError(errno.EIO, "the template's memory has another size than the virtual machine's")
    if count > size // PIECE or _begin_of_data(view) > len(view):
        raise OSError(errno.EIO, "the template's memory is cut short")
    left, last = len(view) - _begin_of_data(view), 0
    for start, end in _HEAD.iter_unpack(view[_HEAD.size : _HEAD.size * (1 + count)]):
        left -= end - start
        if not last <= start < end <= size or left < 0:
            raise OSError(errno.EIO, "the template's memory is damaged")
        last = end
        yield start, end


def _used(view: memoryview, fd: int) -> Iterator[tuple[int, int]]:
    """(start, end) of the non-zero parts; adjacent pieces are joined."""
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


def _pieces(view: memoryview, fd: int) -> Iterator[tuple[int, int]]:
    """(start, end) of every non-zero piece."""
    done = 0
    for start, end in _extents(fd):
        for position in range(max(done, start - start % PIECE), end, PIECE):
            done = min(position + PIECE, len(view))
            if view[position:done] != _ZEROS[: done - position]:
                yield position, done


def _extents(fd: int) -> Iterator[tuple[int, int]]:
    """(start, end) of the parts of the memory that have been written (lseek(2), SEEK_DATA)."""
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
