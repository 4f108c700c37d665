"""The process that the host kernel kills to record an OOM kill of the guest: when it uses memory, and how long it is
awaited."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hawse.host.cgroup.oom import kill_in


def victim(directory: Path, *, swap: bool = True) -> Path:
    """A cgroup of plain files."""
    path = directory / "cgroup"
    path.mkdir()
    for name in ("cgroup.procs", "memory.max", *(["memory.swap.max"] if swap else [])):
        (path / name).write_text("")
    return path


def program(directory: Path, script: str) -> str:
    program = directory / "program"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize("swap", [True, False])
def test_process_is_limited_before_it_uses_memory(tmp_path: Path, swap: bool) -> None:
    path = victim(tmp_path, swap=swap)
    script = f"cat {path}/* >{tmp_path}/before; printf r; head -c 1 >/dev/null; cat {path}/* >{tmp_path}/after; echo $$"
    kill_in(str(path), program=program(tmp_path, f"{script} >{tmp_path}/pid"))
    assert (tmp_path / "before").read_text() == ""
    assert (tmp_path / "after").read_text() == (tmp_path / "pid").read_text().strip() + "0" * (1 + swap)
    assert (path / "memory.max").read_text() == "0"
    assert (path / "memory.swap.max").exists() == swap


def test_real_program_uses_memory_on_request(tmp_path: Path) -> None:
    """Without a limit, as in this test, it exits by itself."""
    path = victim(tmp_path)
    kill_in(str(path))
    assert re.fullmatch("[0-9]+", (path / "cgroup.procs").read_text())
    assert [(path / name).read_text() for name in ("memory.max", "memory.swap.max")] == ["0", "0"]


def test_process_that_continues_is_killed_and_is_an_error(tmp_path: Path) -> None:
    path = victim(tmp_path)
    with pytest.raises(OSError, match="cgroup was not killed despite its memory limit"):
        kill_in(str(path), program=program(tmp_path, "printf r; exec sleep 60"), seconds=0.05)


def test_process_that_ends_at_once_is_not_an_error(tmp_path: Path) -> None:
    kill_in(str(victim(tmp_path)), program=program(tmp_path, "exit 0"))


def test_cgroup_that_refuses_the_process_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        kill_in(f"{tmp_path}/none")
