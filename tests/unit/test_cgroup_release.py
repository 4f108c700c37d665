"""Removing the cgroups of a container: those on record, obstacles, and failures that are only warnings."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hawse.errors import HostError
from hawse.host.cgroup import oom
from hawse.host.cgroup.sandbox_cgroup import HostCgroup, hierarchies, release
from hawse.oci.limits.cgroups import CgroupPlan, HostLimits
from tests.support.host_processes import Lives


def never(_seconds: float) -> None:
    raise AssertionError("nothing here is busy")


def record(directory: Path, *paths: object) -> str:
    (directory / "cgroups").write_text("".join(f"{path}\n" for path in paths))
    return str(directory)


def test_children_of_an_interrupted_recording_are_removed_too(tmp_path: Path) -> None:
    for name in oom.LEFT:
        (tmp_path / "own" / name).mkdir(parents=True)
    assert release(record(tmp_path, tmp_path / "own", tmp_path / "gone"), sleep=never) == []
    assert not (tmp_path / "own").exists()


def test_cgroup_that_cannot_be_removed_is_a_warning_and_the_others_are_removed(tmp_path: Path) -> None:
    (tmp_path / "full" / "other").mkdir(parents=True)
    (tmp_path / "file").touch()
    (tmp_path / "own").mkdir()
    paths = [tmp_path / "full", tmp_path / "file", "/sys/kernel", tmp_path / "own"]
    assert release(record(tmp_path, *paths), sleep=never) == [
        f"the cgroup {tmp_path}/full cannot be removed: Directory not empty",
        f"the cgroup {tmp_path}/file cannot be removed: Not a directory",
        "the cgroup /sys/kernel cannot be removed: Operation not permitted",
    ]
    assert not (tmp_path / "own").exists()


def test_cgroup_that_was_never_created_causes_no_warning(tmp_path: Path) -> None:
    """For example on a file system that cannot contain directories: its creation has warned already."""
    assert release(record(tmp_path, "/proc/sys/kernel/osrelease"), sleep=never) == []


@pytest.mark.parametrize("left", [True, False])
def test_scope_is_ended_when_its_cgroup_is_gone(tmp_path: Path, left: bool) -> None:
    ended: list[str] = []
    (tmp_path / "own").mkdir()
    if left:
        (tmp_path / "own" / "other").mkdir()
    (tmp_path / "scope").write_text("b-c1.scope")
    warnings = release(record(tmp_path, tmp_path / "own"), end=ended.append, sleep=never)
    assert (len(warnings), ended) == ((1, []) if left else (0, ["b-c1.scope"]))


def test_directory_without_a_record_is_ignored(tmp_path: Path) -> None:
    ended: list[str] = []
    assert release(f"{tmp_path}/none", end=ended.append) == []
    (tmp_path / "file").touch()
    assert release(f"{tmp_path}/file", end=ended.append) == []
    assert ended == []


def test_container_without_a_path_has_no_cgroup(tmp_path: Path) -> None:
    cgroup = HostCgroup(CgroupPlan(), str(tmp_path))
    assert cgroup.make() == []
    assert cgroup.place(Lives(os.getpid())) == []
    assert not cgroup.is_made
    assert os.listdir(tmp_path) == []


def test_cgroup_without_a_unit_is_created_without_systemd(tmp_path: Path) -> None:
    (tmp_path / "mountinfo").write_text(f"1 2 0:1 / {tmp_path}/cpu rw - cgroup cgroup rw,cpu\n")
    (tmp_path / "cpu").mkdir()
    cgroup = HostCgroup(CgroupPlan(path="/x"), str(tmp_path))
    assert cgroup.place(Lives(7), mountinfo=str(tmp_path / "mountinfo")) == []
    assert (tmp_path / "cpu" / "x").is_dir()
    assert not (tmp_path / "scope").exists()


def test_host_without_writable_cgroups_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "mountinfo").write_text(f"1 2 0:1 / {tmp_path}/none rw - cgroup cgroup rw,cpu\n")
    cgroup = HostCgroup(CgroupPlan(path="/x"), str(tmp_path))
    assert cgroup.make(mountinfo=str(tmp_path / "mountinfo")) == [
        "the host's cgroups cannot be used: engines find no statistics, and the sandbox has no limits there: "
        f"{tmp_path}/none/x: "
        "No such file or directory"
    ]
    assert cgroup.make(mountinfo=str(tmp_path / "mountinfo")) == [], "only the first attempt warns"


def test_controllers_that_cannot_be_enabled_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "mountinfo").write_text(f"1 2 0:1 / {tmp_path}/two rw - cgroup2 cgroup2 rw\n")
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "cgroup.controllers").write_text("memory pids\n")
    cgroup = HostCgroup(CgroupPlan(path="/x"), str(tmp_path))
    assert cgroup.make(mountinfo=str(tmp_path / "mountinfo")) == []
    assert (tmp_path / "two" / "x").is_dir()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("1 2 0:1 / /m - cgroup2 x rw", [("/m", 2)]),
        ("1 2 0:1 / - cgroup2 x rw", [("", 2)]),
        ("1 2 0:1 / /m rw - cgroup2", [("/m", 2)]),
        ("1 2 0:1 / /m rw - cgroup x", [("/m", 1)]),
        ("1 2 0:1 / /m rw - tmpfs x rw", []),
        ("nonsense", []),
        ("", []),
    ],
)
def test_lines_of_mountinfo(line: str, expected: list[tuple[str, int]]) -> None:
    assert [(hierarchy.mount, hierarchy.version) for hierarchy in hierarchies(line)] == expected


def test_limit_is_written_to_the_first_file_that_accepts_it(tmp_path: Path) -> None:
    for name in ("full", "own"):
        (tmp_path / name).mkdir()
    os.symlink("/dev/full", tmp_path / "full" / "cpuset.cpus")
    cgroup = HostCgroup(CgroupPlan(path="/x"), record(tmp_path, tmp_path / "full", tmp_path / "own"))
    with pytest.raises(HostError, match=r"cpu.cpus: '3' is not set .*: .*/full/cpuset.cpus: No space left on device"):
        cgroup.limit(HostLimits(cpus="3"))
    (tmp_path / "own" / "cpuset.cpus").write_text("")
    assert cgroup.limit(HostLimits(cpus="3")) == []
    assert (tmp_path / "own" / "cpuset.cpus").read_text() == "3"
    [warning] = cgroup.limit(HostLimits(shares=5))
    assert warning.endswith("/full has no controller cpu [enable cpu in its parent cgroups]")
