"""Programs that outlive their monitor are ended with the container."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hawse.host import leftovers
from hawse.state.store import start_time

SLEEP = [sys.executable, "-IS", "-c", "import time; time.sleep(60)"]


def test_program_on_record_is_ended(tmp_path: Path) -> None:
    with subprocess.Popen(SLEEP) as first, subprocess.Popen(SLEEP) as second, subprocess.Popen(SLEEP) as other:
        for process in (first, second):
            leftovers.note(str(tmp_path), process.pid)
        assert leftovers.end(str(tmp_path)) == []
        assert [first.wait(), second.wait(), other.poll()] == [-9, -9, None]
        assert leftovers.end(str(tmp_path)) == [], "once more"
        other.kill()


@pytest.mark.parametrize("record", ["{pid} {other}\n", "nonsense\n", "1 2 3\n", "{pid}\n", ""])
def test_process_with_a_reused_pid_is_not_killed(tmp_path: Path, record: str) -> None:
    with subprocess.Popen(SLEEP) as process:
        text = record.format(pid=process.pid, other=start_time(process.pid) + 1)
        (tmp_path / "programs").write_text(text)
        assert leftovers.end(str(tmp_path)) == []
        assert process.poll() is None
        process.kill()


def test_unused_pid_is_ignored(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    leftovers.note(str(tmp_path), child)
    os.waitpid(child, 0)
    assert leftovers.end(str(tmp_path)) == []
    assert leftovers.end(f"{tmp_path}/none") == []
