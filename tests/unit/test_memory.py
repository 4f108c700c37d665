"""A guest's memory saved to a file: non-zero pieces are copied, and only those."""

from __future__ import annotations

import errno
import hashlib
import os
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hawse.vm import ram_file
from hawse.vm.ram_file import PIECE

SIZE = 16 * PIECE
PAGE = 4096
MIB = 1024 * 1024
#: Position, length and value of bytes; writing zeros is the same as writing nothing.
writes = st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(1, 3 * PIECE), st.integers(0, 255)), max_size=12).map(
    lambda content: [(position, bytes([value]) * length) for position, length, value in content]
)


@contextmanager
def ram(content: list[tuple[int, bytes]], size: int = SIZE) -> Iterator[int]:
    fd = ram_file.make(size)
    try:
        for position, data in content:
            os.pwrite(fd, data[: size - position], position)
        yield fd
    finally:
        os.close(fd)


def saved(content: list[tuple[int, bytes]], size: int = SIZE) -> bytes:
    """The file that a memory is saved to."""
    with ram(content, size) as fd, tempfile.TemporaryFile() as file:
        used = ram_file.save(fd, file.fileno())
        data = file.read()
        assert used == sum(end - start for start, end in table(data))
        return data


def table(data: bytes) -> list[tuple[int, int]]:
    """The table of pieces of a file, in the format that the module's docstring describes."""
    _, count = struct.unpack(">QQ", data[:16])
    return list(struct.iter_unpack(">QQ", data[16 : 16 + 16 * count]))


def restored(data: bytes, size: int = SIZE, *, mapped: bool | None = None) -> bytes:
    """The memory restored from a file. Raises OSError."""
    with ram([], size) as fd, tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        copied = ram_file.restore(file.fileno(), fd, mapped=mapped)
        assert copied == sum(end - start for start, end in table(data))
        assert os.fstat(fd).st_size == size
        return os.pread(fd, size, 0)


@settings(max_examples=60)
@given(writes, st.booleans())
def test_saved_memory_is_restored_identically(content: list[tuple[int, bytes]], mapped: bool) -> None:
    with ram(content) as fd:
        before = os.pread(fd, SIZE, 0)
    data = saved(content)
    assert restored(data, mapped=mapped) == before
    used = sum(end - start for start, end in table(data))
    assert SIZE - before.count(0) <= used
    assert used % PIECE == 0


@pytest.mark.parametrize("position", [0, PIECE - 1, 5 * PIECE + 77, SIZE - 1])
def test_digest_covers_every_byte(position: int) -> None:
    with ram([(5 * PIECE, b"some")]) as fd:
        before = ram_file.digest(fd)
        assert before == hashlib.sha256(os.pread(fd, SIZE, 0)).hexdigest()
        os.pwrite(fd, b"X", position)
        assert ram_file.digest(fd) == hashlib.sha256(os.pread(fd, SIZE, 0)).hexdigest() != before


def test_digest_of_an_empty_file(tmp_path: Path) -> None:
    with open(tmp_path / "empty", "w+b") as file:
        assert ram_file.digest(file.fileno()) == hashlib.sha256().hexdigest()


@pytest.mark.parametrize(
    ("content", "pieces"),
    [
        ([], []),
        ([(10 * PIECE, bytes(PIECE))], []),
        ([(5 * PIECE + 17, b"x")], [(5, 6)]),
        ([(5 * PIECE + PAGE, b"x")], [(5, 6)]),
        ([(6 * PIECE - 1, b"x")], [(5, 6)]),
        ([(5 * PIECE, b"x"), (5 * PIECE + 2 * PAGE, b"x")], [(5, 6)]),  # two pages with a hole between them
        ([(5 * PIECE, b"x"), (6 * PIECE, b"x")], [(5, 7)]),
        ([(5 * PIECE, b"x"), (7 * PIECE, b"x")], [(5, 6), (7, 8)]),
        ([(5 * PIECE, b"x" * 2 * PIECE), (8 * PIECE, b"x")], [(5, 7), (8, 9)]),
        ([(0, b"x"), (SIZE - 1, b"x")], [(0, 1), (15, 16)]),
        ([(5 * PIECE - 1, b"xx")], [(4, 6)]),
    ],
)
def test_file_has_a_table_followed_by_the_nonzero_pieces(
    content: list[tuple[int, bytes]], pieces: list[tuple[int, int]]
) -> None:
    data = saved(content)
    assert struct.unpack(">QQ", data[:16]) == (SIZE, len(pieces))
    assert table(data) == [(begin * PIECE, end * PIECE) for begin, end in pieces]
    assert len(data) == PAGE + sum(end - begin for begin, end in pieces) * PIECE
    assert not any(data[16 + 16 * len(pieces) : PAGE])


def test_memory_size_need_not_be_a_multiple_of_the_piece_size() -> None:
    size = 2 * PIECE + PAGE
    assert table(saved([(2 * PIECE, bytes(PAGE))], size)) == []
    data = saved([(size - 1, b"x")], size)
    assert table(data) == [(2 * PIECE, size)]
    assert restored(data, size) == bytes(size - 1) + b"x"


@pytest.mark.parametrize("count", [255, 256])
def test_table_longer_than_a_page(count: int) -> None:
    size = 2 * count * PIECE
    content = [(2 * index * PIECE, bytes([1 + index % 255])) for index in range(count)]
    data = saved(content, size)
    begin = PAGE if count == 255 else 2 * PAGE
    assert len(data) == begin + count * PIECE
    assert restored(data, size)[:: 2 * PIECE] == b"".join(byte for _, byte in content)


@pytest.mark.parametrize(
    ("size", "pieces"), [(16 * MIB, [(0, 16 * MIB)]), (16 * MIB + PIECE, [(0, 16 * MIB), (16 * MIB, 16 * MIB + PIECE)])]
)
def test_adjacent_pieces_are_joined_up_to_16_mib(size: int, pieces: list[tuple[int, int]]) -> None:
    """Pieces of this size stay in the processor's caches while they are written."""
    content = b"x" * size
    data = saved([(0, content)], size)
    assert table(data) == pieces
    assert restored(data, size) == content


def file_of(size: int, pieces: list[tuple[int, int]], data: int, *, head: int = PAGE) -> bytes:
    """A file with this table, and this number of bytes after it."""
    words = [size, len(pieces), *(number for piece in pieces for number in piece)]
    return struct.pack(f">{len(words)}Q", *words).ljust(head, b"\0") + b"x" * data


P = PIECE


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "cut short"),
        (file_of(2 * P, [], 0, head=0)[:15], "cut short"),
        (file_of(2 * P, [], 0, head=0), "cut short"),
        (file_of(2 * P, [], 0)[:-1], "cut short"),
        (file_of(2 * P, [(0, P)] * 3, 3 * P), "cut short"),
        (file_of(3 * P, [(0, P)], P), "another size"),
        (file_of(P, [(0, P)], P), "another size"),
        (file_of(2 * P, [(P, 2 * P)], P - 1), "damaged"),
        (file_of(2 * P, [(0, P), (P, 2 * P)], 2 * P - 1), "damaged"),
        (file_of(2 * P, [(P, P)], P), "damaged"),
        (file_of(2 * P, [(P, 0)], P), "damaged"),
        (file_of(2 * P, [(P, 2 * P + 1)], 2 * P), "damaged"),
        (file_of(2 * P, [(0, P), (P - 1, 2 * P)], 2 * P + 1), "damaged"),
        (file_of(2 * P, [(P, 2 * P), (0, P)], 2 * P), "damaged"),
    ],
)
def test_inconsistent_file_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(OSError, match=f"the template's memory (is|has) {reason}") as caught:
        restored(data, 2 * P)
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([], b"\0" * 2 * P),
        ([(P, 2 * P)], b"\0" * P + b"x" * P),
        ([(0, P), (P, 2 * P)], b"x" * 2 * P),
        ([(0, 2 * P)], b"x" * 2 * P),
        ([(1, 2)], b"\0x" + b"\0" * (2 * P - 2)),
    ],
)
@pytest.mark.parametrize("mapped", [False, True])
def test_tables_at_their_limits_are_restored(pieces: list[tuple[int, int]], expected: bytes, mapped: bool) -> None:
    data = file_of(2 * P, pieces, sum(end - start for start, end in pieces))
    assert restored(data, 2 * P, mapped=mapped) == expected
    assert restored(data + b"what follows", 2 * P, mapped=mapped) == expected


def test_ordinary_memory_is_mapped_only_on_request() -> None:
    """A mapping causes a page fault for each page, and needs a file descriptor that is also readable."""
    with ram([]) as fd, tempfile.TemporaryFile() as file:
        write_only = os.open(ram_file.path(fd), os.O_WRONLY)
        file.write(file_of(SIZE, [(P, 2 * P)], P))
        file.flush()
        assert ram_file.restore(file.fileno(), write_only, mapped=False) == P
        assert ram_file.restore(file.fileno(), write_only) == P
        with pytest.raises(PermissionError):
            ram_file.restore(file.fileno(), write_only, mapped=True)
        os.close(write_only)
        assert os.pread(fd, SIZE, 0).strip(b"\0") == b"x" * P


@settings(max_examples=60)
@given(writes, st.integers(0, PAGE + SIZE), st.binary(max_size=24))
def test_damaged_file_is_an_error_or_harmless(content: list[tuple[int, bytes]], place: int, damage: bytes) -> None:
    """Whatever the table contains, no byte outside of the memory is written."""
    data = bytearray(saved(content))
    data = data[: max(len(data) - place, 0)] if place % 2 else data
    data[place % 256 : place % 256 + len(damage)] = damage
    with ram([]) as fd, tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        with suppress(OSError):
            ram_file.restore(file.fileno(), fd)
        assert os.fstat(fd).st_size == SIZE


SIZES = [
    int(name.removeprefix("hugepages-").removesuffix("kB"))
    for name in (os.listdir("/sys/kernel/mm/hugepages") if os.path.isdir("/sys/kernel/mm/hugepages") else ())
]


@pytest.mark.parametrize("kib", SIZES)
def test_memory_has_the_requested_page_size(kib: int) -> None:
    fd = ram_file.create(kib * 1024, page_kib=kib)
    assert os.fstatvfs(fd).f_bsize == kib * 1024
    assert ram_file.is_huge(fd)
    os.close(fd)
    with ram([]) as fd:
        assert not ram_file.is_huge(fd)


@pytest.mark.parametrize("kib", SIZES)
def test_missing_huge_pages_are_refused_at_creation(kib: int) -> None:
    """Without a reservation QEMU would die of SIGBUS when the guest touches the first missing page."""
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="Cannot allocate memory"):
        ram_file.make(1 << 46, page_kib=kib)
    assert os.listdir("/proc/self/fd") == before


def test_memory_of_an_impossible_size_leaks_no_descriptor() -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="Invalid argument"):
        ram_file.make(-1)
    assert os.listdir("/proc/self/fd") == before
