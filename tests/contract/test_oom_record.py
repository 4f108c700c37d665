"""Recording an OOM kill in a cgroup of version 2 of this host: the kill is counted, and everything else is restored."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from hawse.host.cgroup import oom
from tests.support.mount_table import cgroup_hierarchies


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """An empty cgroup."""
    mounts = [hierarchy.mount for hierarchy in cgroup_hierarchies(version=2)]
    if not mounts or not os.access(f"{mounts[0]}/cgroup.procs", os.W_OK):
        pytest.skip("no cgroup of version 2 can be made here")
    path = Path(mounts[0], f"oom-test-{os.getpid()}")
    path.mkdir()
    yield path
    for left in (*(path / name for name in oom.LEFT), path):
        with suppress(FileNotFoundError):
            left.rmdir()


def test_processes_come_back_whether_the_kill_can_be_recorded_or_not(cgroup: Path) -> None:
    """Where the memory controller is not of version 2, the recording fails after the processes were moved."""
    memory = "memory" in (cgroup / "cgroup.controllers").read_text().split()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as member:
        (cgroup / "cgroup.procs").write_text(str(member.pid))
        try:
            if memory:
                oom.record(str(cgroup))
                events = dict(line.split() for line in (cgroup / "memory.events").read_text().splitlines())
                assert events["oom_kill"] == "1"
            else:
                with pytest.raises(OSError, match=r"No such file|Invalid argument|not supported"):
                    oom.record(str(cgroup))
            assert (cgroup / "cgroup.procs").read_text().split() == [str(member.pid)]
            assert [entry for entry in cgroup.iterdir() if entry.is_dir()] == []
            assert (cgroup / "cgroup.subtree_control").read_text().strip() == ""
        finally:
            member.kill()


def test_cgroup_that_is_gone_is_an_error(cgroup: Path) -> None:
    with pytest.raises(FileNotFoundError):
        oom.record(f"{cgroup}/none")


def test_cgroup_that_has_a_child_of_that_name_is_left_alone(cgroup: Path) -> None:
    """Of another recording, or of one that was interrupted."""
    (cgroup / oom.MEMBERS).mkdir()
    with pytest.raises(FileExistsError):
        oom.record(str(cgroup))
    assert (cgroup / oom.MEMBERS).is_dir()
