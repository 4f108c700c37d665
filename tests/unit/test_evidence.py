"""Console output of a guest is limited in size, and printed without terminal control characters."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest

from hawse.monitor.machine.bounded_log import FILE_LIMIT, TAIL, BoundedLog, collect


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "console.log"


def test_a_log_rotates_once_it_would_exceed_its_limit(path: Path) -> None:
    log = BoundedLog(str(path))
    log.write(b"a" * (FILE_LIMIT - 1))
    log.write(b"b")
    assert path.stat().st_size == FILE_LIMIT
    assert not path.with_name("console.log.old").exists()
    log.write(b"c")
    assert path.read_bytes() == b"c"
    old = path.with_name("console.log.old")
    assert (old.stat().st_size, old.read_bytes()[-1:]) == (FILE_LIMIT, b"b")
    log.write(b"d" * FILE_LIMIT)
    assert old.read_bytes() == b"c", "one previous file is kept"
    log.write(b"e")
    assert (path.read_bytes(), log.tail()) == (b"e", "d" * (TAIL - 1) + "e")
    log.close()


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", ""),
        (b"one\r\ntwo\n\n", "one\ntwo"),
        (b"red \x1b[31m\x07alert\x9b", "red [31malert�"),
        (b"\n".join(b"%d" % number for number in range(20)), "\n".join(str(number) for number in range(5, 20))),
        (b"half of \xc3", "half of �"),
    ],
)
def test_the_tail_is_the_last_lines_without_control_characters(path: Path, data: bytes, text: str) -> None:
    log = BoundedLog(str(path))
    log.write(data)
    assert log.tail() == text
    log.close()


def test_a_stream_is_collected_to_its_end_though_the_log_cannot_be_written(path: Path) -> None:
    class Full(BoundedLog):
        """A log on a disk that is full for a moment."""

        def write(self, data: bytes) -> None:
            if data == b"lost":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            super().write(data)

    class Pieces(asyncio.StreamReader):
        """A stream that is read in the pieces that it was written in."""

        def __init__(self) -> None:
            super().__init__()
            self.pieces = [b"one", b"lost", b"two", b""]

        async def read(self, _count: int = -1) -> bytes:
            return self.pieces.pop(0)

    async def story() -> None:
        log = Full(str(path))
        await collect(Pieces(), log)
        assert path.read_bytes() == b"onetwo"
        log.close()

    asyncio.run(story())
