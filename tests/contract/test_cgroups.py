"""Cgroups of the real kernel: those of a sandbox are removed as soon as the kernel permits it."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from hawse.host.cgroup import oom
from hawse.host.cgroup.sandbox_cgroup import release
from tests.support.mount_table import cgroup_hierarchies


def writable() -> list[str]:
    """The mount points of the hierarchies in which cgroups can be created."""
    mounts = [hierarchy.mount for hierarchy in cgroup_hierarchies() if "cpuset" not in hierarchy.controllers]
    return [mount for mount in mounts if os.access(f"{mount}/cgroup.procs", os.W_OK)]


def test_cgroup_in_use_is_removed_when_its_last_process_has_ended(tmp_path: Path) -> None:
    """A proxy in a child of the cgroup ends shortly after its monitor. Until then neither cgroup can be removed."""
    mounts = writable()
    if not mounts:
        pytest.skip("no cgroup can be made here")
    path = f"{mounts[0]}/left-{os.getpid()}"
    child = f"{path}/{oom.MEMBERS}"
    (tmp_path / "cgroups").write_text(f"{path}\n")
    attempts = 0
    try:
        os.makedirs(child)
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as member:
            Path(child, "cgroup.procs").write_text(str(member.pid))

            def sleep(seconds: float) -> None:
                nonlocal attempts
                attempts += 1
                assert os.path.isdir(child)
                if attempts == 2:
                    member.kill()
                    member.wait()
                time.sleep(seconds)

            assert release(str(tmp_path), sleep=sleep) == []
        assert attempts >= 2
        assert not os.path.exists(path)
    finally:
        for left in (child, path):
            with suppress(FileNotFoundError):
                os.rmdir(left)
