"""Cgroups with the kernel's own: what is left of a sandbox's is removed as soon as the kernel lets it go."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from hawse.sandbox import oom
from hawse.sandbox.cgroups import hierarchies, release


def writable() -> list[str]:
    """The hierarchies of this host that a cgroup can be made in."""
    with open("/proc/self/mountinfo") as file:
        mounts = [found.mount for found in hierarchies(file.read()) if "cpuset" not in found.controllers]
    return [mount for mount in mounts if os.access(f"{mount}/cgroup.procs", os.W_OK)]


def test_what_an_interrupted_recording_left_is_removed_when_its_process_has_gone(tmp_path: Path) -> None:
    """A proxy in a child of the cgroup ends a moment after its monitor: until then neither can be removed."""
    mounts = writable()
    if not mounts:
        pytest.skip("no cgroup can be made here")
    path = f"{mounts[0]}/left-{os.getpid()}"
    child = f"{path}/{oom.MEMBERS}"
    (tmp_path / "cgroups").write_text(f"{path}\n")
    try:
        os.makedirs(child)
        with subprocess.Popen(["sh", "-c", "read line; exec sleep 0.3"], stdin=subprocess.PIPE) as member:
            Path(child, "cgroup.procs").write_text(str(member.pid))
            assert member.stdin is not None
            member.stdin.close()
            assert release(str(tmp_path)) == []
        assert not os.path.exists(path)
    finally:
        for left in (child, path):
            with suppress(FileNotFoundError):
                os.rmdir(left)
