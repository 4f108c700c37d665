"""The result cache in a file: it keeps the last eight results, each under its key, and replaces invalid files."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hawse.cache import results


def test_last_eight_results_are_kept_newest_first(tmp_path: Path) -> None:
    path = f"{tmp_path}/sub/answers.json"
    for number in range(9):
        results.write(path, number, f"answer {number}")
    assert [results.read(path, number) for number in range(9)] == [
        None,
        *(f"answer {number}" for number in range(1, 9)),
    ]
    results.write(path, 1, "again")
    results.write(path, 9, "new")
    assert (results.read(path, 1), results.read(path, 2)) == ("again", None)
    assert os.listdir(f"{tmp_path}/sub") == ["answers.json"]


def test_results_of_concurrent_writers_are_all_kept(tmp_path: Path) -> None:
    path = f"{tmp_path}/answers.json"
    for _ in range(20):
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda number: results.write(path, number, f"answer {number}"), range(8)))
        assert [results.read(path, number) for number in range(8)] == [f"answer {number}" for number in range(8)]
        os.unlink(path)
    assert os.listdir(tmp_path) == []


def test_long_result_is_kept(tmp_path: Path) -> None:
    """QEMU's list of devices has ten kilobytes."""
    results.write(f"{tmp_path}/answers.json", "key", "x" * 20_000)
    assert results.read(f"{tmp_path}/answers.json", "key") == "x" * 20_000


@pytest.mark.parametrize("text", ["", "{}", "[1]", "[[1]]", "[[1, 2, 3]]", '[["key", 1], 2]', "\xff"])
def test_invalid_file_gives_no_result_and_is_replaced(tmp_path: Path, text: str) -> None:
    path = tmp_path / "answers.json"
    path.write_bytes(text.encode("latin-1"))
    assert results.read(str(path), "key") is None
    results.write(str(path), "key", 5)
    assert results.read(str(path), "key") == 5


def test_second_process_waits_for_the_lock_and_finds_the_first_ones_result(tmp_path: Path) -> None:
    text = (
        "import os, sys; from hawse.cache.results import locked; print(flush=True)\n"
        "with locked(sys.argv[1] + '/lock'): print(os.path.exists(sys.argv[1] + '/made'))"
    )
    with results.locked(f"{tmp_path}/lock"):
        second = subprocess.Popen([sys.executable, "-c", text, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert second.stdout is not None
        second.stdout.readline()
        # It blocks in flock(2), now or soon: in both cases it cannot continue before the lock is released.
        (tmp_path / "made").touch()
    assert second.communicate()[0] == "True\n"
