"""The mounts of a guest, created by the kernel of this host in a private mount namespace."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import hawse
from hawse.agent.machine import hugepages
from hawse.errors import VmError
from tests.support.agent import Agent
from tests.support.mount_table import parse

_PACKAGES = os.path.dirname(os.path.dirname(os.path.abspath(hawse.__file__)))


def mounts(table: str) -> dict[str, tuple[str, set[str], set[str]]]:
    """{mount point: (type, options of the mount, options of the file system)} of a mountinfo's text (proc(5))."""
    return {mount.point: (mount.kind, set(mount.options), set(mount.file_system_options)) for mount in parse(table)}


def test_file_systems_of_a_guest_have_restrictive_options() -> None:
    program = (
        f"import sys; sys.path.insert(0, {_PACKAGES!r}); from hawse.agent.machine import boot; boot.prepare_root(); "
        "print(open('/proc/self/mountinfo').read())"
    )
    table = subprocess.check_output(["unshare", "--mount", sys.executable, "-I", "-c", program], text=True)
    mounted = mounts(table)
    strict = {"nosuid", "nodev", "noexec"}
    expected = {
        "/proc": ("proc", strict),
        "/sys": ("sysfs", strict),
        "/sys/fs/cgroup": ("cgroup2", strict),
        "/dev": ("devtmpfs", {"nosuid"}),
        "/dev/pts": ("devpts", {"nosuid", "noexec"}),
        "/dev/shm": ("tmpfs", {"nosuid", "nodev"}),
        "/run": ("tmpfs", {"nosuid", "nodev"}),
    }
    assert {path: (mounted[path][0], mounted[path][1] & strict) for path in expected} == expected
    assert {"gid=5", "mode=620", "ptmxmode=666"} <= mounted["/dev/pts"][2]
    assert "mode=755" in mounted["/run"][2]


def test_shared_memory_is_limited_and_shared_by_containers_of_a_pod(tmp_path: Path) -> None:
    with Agent(str(tmp_path), unshare=("--mount",)) as agent:
        agent.call("share_memory", name="m1", size=8 << 20)
        path = f"/proc/{agent.pid}/root{tmp_path}/shm/m1"
        Path(path, "mark").touch()
        agent.call("share_memory", name="m1", size=16 << 20)
        assert os.listdir(path) == ["mark"]
        kind, options, limits = mounts(Path(f"/proc/{agent.pid}/mountinfo").read_text())[f"{tmp_path}/shm/m1"]
    assert kind == "tmpfs"
    assert {"nosuid", "nodev", "noexec"} <= options
    assert "size=8192k" in limits


def test_hugetlbfs_has_the_owner_of_the_hosts(tmp_path: Path) -> None:
    if not os.path.isdir(f"{hugepages.SYSFS}/hugepages-2048kB"):
        pytest.skip("this kernel has no huge pages of 2 MiB")
    share = {"name": "h1", "kib": 2048, "mode": 0o1770, "uid": 7, "gid": 8}
    with Agent(str(tmp_path), unshare=("--mount",)) as agent:
        agent.call("share_hugepages", **share)
        agent.call("share_hugepages", **share)
        table = Path(f"/proc/{agent.pid}/mountinfo").read_text()
    kind, options, limits = mounts(table)[f"{tmp_path}/hugepages/h1"]
    assert table.count("hugepages/h1") == 1
    assert (kind, options & {"nosuid", "nodev"}) == ("hugetlbfs", {"nosuid", "nodev"})
    assert {"pagesize=2M", "mode=1770", "uid=7", "gid=8"} <= limits


def test_page_size_that_the_cpu_lacks_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with Agent(str(tmp_path), unshare=("--mount",)) as agent:
        with pytest.raises(VmError, match="the guest cannot mount huge pages of 6MB: "):
            agent.call("share_hugepages", name="h1", kib=6144, mode=0o700, uid=0, gid=0)
        assert os.listdir(f"{tmp_path}/hugepages") == []
