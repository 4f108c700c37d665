"""A container's cgroup, with a directory of plain files."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hawse.agent.container.cgroup import Cgroup
from tests.support.patience import patience


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    cgroup = tmp_path / "hawse/c1"
    (cgroup / "below").mkdir(parents=True)
    (cgroup / "cgroup.procs").write_text("")
    return cgroup


@pytest.fixture
def member() -> Iterator[subprocess.Popen[bytes]]:
    program = subprocess.Popen(["sleep", "1000"])
    yield program
    program.kill()
    program.wait()


def cgroup(directory: Path) -> Cgroup:
    return Cgroup("/hawse/c1/", root=str(directory.parents[1]))


def test_members_include_those_of_child_cgroups(directory: Path) -> None:
    (directory / "cgroup.procs").write_text("7\n9\n")
    (directory / "below/cgroup.procs").write_text("11\n")
    assert sorted(cgroup(directory).members()) == [7, 9, 11]


def test_signal_is_sent_to_all_members(directory: Path, member: subprocess.Popen[bytes]) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    (directory / "cgroup.kill").write_text("")
    (directory / "cgroup.procs").write_text(f"{ended.pid}\n{member.pid}\n")
    cgroup(directory).signal(15)
    assert member.wait(patience(3)) == -15
    assert (directory / "cgroup.kill").read_text() == ""


def test_members_are_killed_by_cgroup_kill_if_it_exists(directory: Path, member: subprocess.Popen[bytes]) -> None:
    """cgroup.kill exists from Linux 5.14 on; before, each member is killed."""
    (directory / "cgroup.procs").write_text(f"{member.pid}\n")
    (directory / "cgroup.kill").write_text("")
    cgroup(directory).signal(9)
    assert (directory / "cgroup.kill").read_text() == "1"
    assert member.poll() is None
    (directory / "cgroup.kill").unlink()
    cgroup(directory).signal(9)
    assert member.wait(patience(3)) == -9
    assert not (directory / "cgroup.kill").exists()


def test_statistics_contain_known_files_and_those_of_huge_pages(directory: Path) -> None:
    names = ("memory.current", "pids.max", "hugetlb.2MB.current", "cgroup.type", "memory.high", "cpu.weight")
    for name in names:
        (directory / name).write_text(name)
    assert cgroup(directory).statistics() == {
        name: name for name in ("memory.current", "pids.max", "hugetlb.2MB.current")
    }  # fmt: skip


def test_large_file_is_read_up_to_the_limit(directory: Path) -> None:
    (directory / "io.stat").write_text("x" * 20_000)
    assert len(cgroup(directory).statistics()["io.stat"]) == 16_384


@pytest.mark.parametrize(
    ("text", "kills"), [("oom 4\noom_kill 3\noom_group_kill 1\n", 3), ("oom_kill 0\n", 0), ("low 1\n", 0)]
)
def test_oom_kills_are_counted(directory: Path, text: str, kills: int) -> None:
    (directory / "memory.events").write_text(text)
    assert cgroup(directory).oom_kills() == kills


@pytest.mark.parametrize(("kills", "reports"), [(0, []), (3, [3])])
def test_oom_kills_are_reported_while_they_are_watched(directory: Path, kills: int, reports: list[int]) -> None:
    """A kill before the watch counts; without a kill nothing is reported."""
    (directory / "memory.events").write_text(f"oom_kill {kills}\n")
    watched = cgroup(directory)
    counts: list[int] = []
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    watched.watch_oom(counts.append)
    watched.unwatch()
    assert counts == reports
    assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == (threads, files)
    watched.unwatch()


def test_cgroup_without_a_memory_controller_is_not_watched(directory: Path) -> None:
    watched = cgroup(directory)
    counts: list[int] = []
    watched.watch_oom(counts.append)
    watched.unwatch()
    assert counts == []
