"""A guest's memory as a file: what is not zero is copied, and nothing else."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hawse.vm import memory

SIZE = 64 * memory.PIECE
writes = st.lists(st.tuples(st.integers(0, SIZE - 1), st.binary(min_size=1, max_size=3 * memory.PIECE)), max_size=12)


def filled(content: list[tuple[int, bytes]]) -> int:
    fd = memory.make(SIZE)
    for position, data in content:
        os.pwrite(fd, data[: SIZE - position], position)
    return fd


@given(writes)
def test_a_memory_is_the_same_after_saving_and_restoring(content: list[tuple[int, bytes]]) -> None:
    ram, again = filled(content), memory.make(SIZE)
    with tempfile.TemporaryFile() as file:
        used = memory.save(ram, file.fileno())
        assert memory.restore(file.fileno(), again) == used
        assert os.pread(again, SIZE, 0) == os.pread(ram, SIZE, 0)
        assert used % memory.PIECE == 0
        assert used >= sum(1 for byte in os.pread(ram, SIZE, 0) if byte)
    os.close(ram)
    os.close(again)


@given(writes, st.integers(0, SIZE - 1))
def test_any_changed_byte_changes_the_digest(content: list[tuple[int, bytes]], position: int) -> None:
    ram = filled(content)
    before = memory.digest(ram)
    [byte] = os.pread(ram, 1, position)
    os.pwrite(ram, bytes([byte ^ 0x40]), position)
    assert memory.digest(ram) != before
    os.close(ram)


def test_what_was_never_used_takes_no_room(tmp_path: Path) -> None:
    ram = filled([(5 * memory.PIECE + 17, b"x"), (40 * memory.PIECE, bytes(memory.PIECE))])
    with open(tmp_path / "memory", "w+b") as file:
        assert memory.save(ram, file.fileno()) == memory.PIECE
        assert os.fstat(file.fileno()).st_size == 4096 + memory.PIECE
    os.close(ram)


def test_a_memory_of_another_size_is_refused(tmp_path: Path) -> None:
    ram, other = memory.make(SIZE), memory.make(2 * SIZE)
    with open(tmp_path / "memory", "w+b") as file:
        memory.save(ram, file.fileno())
        with pytest.raises(OSError, match="another size"):
            memory.restore(file.fileno(), other)
    os.close(ram)
    os.close(other)


@given(writes, st.integers(0, 4096 + SIZE), st.binary(max_size=24))
def test_a_damaged_file_is_an_error_or_harmless(content: list[tuple[int, bytes]], place: int, damage: bytes) -> None:
    """Nothing is written outside of the memory, whatever the table says."""
    ram, again = filled(content), memory.make(SIZE)
    with tempfile.TemporaryFile() as file:
        memory.save(ram, file.fileno())
        os.ftruncate(file.fileno(), max(os.fstat(file.fileno()).st_size - place, 0) if place % 2 else SIZE)
        os.pwrite(file.fileno(), damage, place % 256)
        with suppress(OSError):
            memory.restore(file.fileno(), again)
    assert os.fstat(again).st_size == SIZE
    os.close(ram)
    os.close(again)
