"""The host's cgroups above a sandbox: their limits, and errors and warnings if these are below the VM's needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from hawse.errors import HostError
from hawse.planner.cgroup_limits import Allowed, Limit, above, check, default_parent, read
from hawse.vm.host_memory import Needs

MIB = 1024 * 1024
NEEDS = Needs(host_mib=150, start_mib=200, full_mib=900, tasks=30)


class Cgroups:
    """Two hierarchies of version 1 and one of version 2, below a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.mountinfo = f"{directory}/mountinfo"
        Path(self.mountinfo).write_text(
            f"30 1 0:1 / {directory}/memory rw - cgroup cgroup rw,memory\n"
            f"31 1 0:2 / {directory}/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
            f"32 1 0:3 / {directory}/two rw - cgroup2 cgroup2 rw\n"
        )
        self.own = f"{directory}/own"
        Path(self.own).write_text("3:cpuacct,cpu:/user/1\n2:memory:/system/engine\n0::/system/engine\n")

    def write(self, path: str, text: str) -> str:
        place = self.directory / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"{text}\n")
        return str(place)

    def read(self, path: str) -> Allowed:
        return read(path, mountinfo=self.mountinfo, own=self.own)


@pytest.fixture
def cgroups(tmp_path: Path) -> Cgroups:
    return Cgroups(tmp_path)


def test_no_limits_without_limits_above(cgroups: Cgroups) -> None:
    cgroups.write("two/kubepods/memory.max", "max")
    cgroups.write("two/kubepods/pids.max", "max")
    cgroups.write("two/kubepods/cpu.max", "max 100000")
    cgroups.write("cpu/kubepods/cpu.cfs_quota_us", "-1")
    cgroups.write("cpu/kubepods/cpu.cfs_period_us", "100000")
    assert cgroups.read("/kubepods/pod/c1") == Allowed()
    assert check(Allowed(), NEEDS) == []


@pytest.mark.parametrize(
    ("file", "text", "field", "value"),
    [
        ("memory/kubepods/pod/memory.limit_in_bytes", "67108864", "memory", 64 * MIB),
        ("memory/kubepods/memory.limit_in_bytes", "67108864", "memory", 64 * MIB),
        ("memory/memory.limit_in_bytes", "67108864", "memory", 64 * MIB),
        ("two/kubepods/pod/memory.max", "0", "memory", 0),
        ("two/memory.max", "67108864", "memory", 64 * MIB),
        ("two/kubepods/memory.high", "67108864", "high", 64 * MIB),
        ("two/kubepods/pod/pids.max", "20", "tasks", 20),
        ("two/kubepods/pod/cpu.max", "10000 100000", "cpus", 0.1),
    ],
)
def test_limit_of_each_cgroup_above_applies(cgroups: Cgroups, file: str, text: str, field: str, value: float) -> None:
    path = cgroups.write(file, text)
    assert cgroups.read("/kubepods/pod/c1") == Allowed(**{field: Limit(path, value)})
    cgroups.write(file, "nonsense")
    assert cgroups.read("/kubepods/pod/c1") == Allowed()


def test_smallest_limit_applies(cgroups: Cgroups) -> None:
    cgroups.write("memory/kubepods/memory.limit_in_bytes", "3000")
    path = cgroups.write("memory/kubepods/pod/memory.limit_in_bytes", "2000")
    cgroups.write("two/kubepods/memory.max", "2500")
    # hawse itself sets the cgroup of the sandbox; cgroups elsewhere in the tree do not limit it.
    cgroups.write("memory/kubepods/pod/c1/memory.limit_in_bytes", "1000")
    cgroups.write("memory/other/memory.limit_in_bytes", "1000")
    assert cgroups.read("/kubepods/pod/c1") == Allowed(memory=Limit(path, 2000))


def test_quota_of_version_1_is_divided_by_its_period(cgroups: Cgroups) -> None:
    path = cgroups.write("cpu/a/cpu.cfs_quota_us", "5000")
    cgroups.write("cpu/a/cpu.cfs_period_us", "50000")
    assert cgroups.read("/a/c1") == Allowed(cpus=Limit(path, 0.1))
    cgroups.write("cpu/a/cpu.cfs_period_us", "0")
    assert cgroups.read("/a/c1") == Allowed()


def test_sandbox_without_a_path_is_in_the_cgroup_of_the_command(cgroups: Cgroups) -> None:
    """Its own cgroup counts as well."""
    path = cgroups.write("memory/system/engine/memory.limit_in_bytes", "2000")
    tasks = cgroups.write("two/system/engine/pids.max", "7")
    cgroups.write("cpu/user/1/cpu.cfs_quota_us", "5000")
    cgroups.write("cpu/user/1/cpu.cfs_period_us", "50000")
    limits = cgroups.read("")
    assert (limits.memory, limits.tasks, limits.cpus is not None) == (Limit(path, 2000), Limit(tasks, 7), True)
    # A cgroup outside of the root of this process's cgroup namespace cannot be found.
    Path(cgroups.own).write_text("2:memory:/../../x\n0::/\n")
    assert cgroups.read("") == Allowed()


def test_cgroups_are_ordered_from_the_lowest_to_the_root(cgroups: Cgroups) -> None:
    directories = [directory for _, directory in above("/a/b", mountinfo=cgroups.mountinfo, own=cgroups.own)]
    assert directories[:3] == [f"{cgroups.directory}/memory{below}" for below in ("/a/b", "/a", "")]
    assert len(directories) == 9


@pytest.mark.parametrize(
    ("allowed", "words"),
    [
        (
            Allowed(memory=Limit("/c/memory.max", 64 * MIB)),
            "/c/memory.max allows 64 MiB, and the virtual machine needs 200 MiB before its containers use memory "
            "[raise that limit, for a Kubernetes pod by an `overhead` of its RuntimeClass, as in deploy/kubernetes/"
            "runtimeclass.yaml]",
        ),
        (Allowed(memory=Limit("/c/memory.max", 200 * MIB - 1)), "/c/memory.max allows 199 MiB"),
        (Allowed(memory=Limit("/c/memory.max", 0)), "/c/memory.max allows 0 MiB"),
        (
            Allowed(tasks=Limit("/c/pids.max", 29)),
            "/c/pids.max allows 29 processes and threads, and a sandbox needs 30 on the host [raise",
        ),
    ],
)
def test_limit_that_the_vm_certainly_exceeds_is_refused(allowed: Allowed, words: str) -> None:
    with pytest.raises(HostError) as caught:
        check(allowed, NEEDS)
    assert caught.value.sentence().startswith(words)


@pytest.mark.parametrize(
    ("allowed", "words"),
    [
        (Allowed(memory=Limit("/c/memory.max", 900 * MIB)), []),
        (
            Allowed(memory=Limit("/c/memory.max", 900 * MIB - 1)),
            ["/c/memory.max allows 899 MiB, and the virtual machine needs 900 MiB when its containers use all"],
        ),
        (Allowed(memory=Limit("/c/memory.max", 200 * MIB)), ["/c/memory.max allows 200 MiB"]),
        (Allowed(high=Limit("/c/memory.high", 100 * MIB)), ["/c/memory.high is 100 MiB"]),
        (Allowed(high=Limit("/c/memory.high", 200 * MIB)), []),
        (Allowed(cpus=Limit("/c/cpu.max", 0.1)), ["/c/cpu.max allows 0.10 CPUs"]),
        (Allowed(cpus=Limit("/c/cpu.max", 0.25)), []),
        (Allowed(tasks=Limit("/c/pids.max", 30)), []),
    ],
)
def test_limit_that_the_vm_may_exceed_is_a_warning(allowed: Allowed, words: list[str]) -> None:
    warnings = check(allowed, NEEDS)
    assert [text[: len(word)] for text, word in zip(warnings, words, strict=True)] == words
    assert all(" [" in text and text.endswith("]") for text in warnings), "no remedy"


@pytest.mark.parametrize(
    ("controllers", "own", "parent"),
    [
        ("cpuset", "4:cpuset:/user/1\n0::/system/engine\n", "/user/1"),
        ("cpuset,cpu", "4:cpu,cpuset:/\n0::/system/engine\n", "/"),
        ("memory", "4:memory:/user/1\n0::/user.slice/session.scope\n", "/user.slice"),
        ("memory", "4:memory:/user/1\n0::/\n", "/"),
        ("memory", "4:memory:/user/1\n0::/../elsewhere\n", "/"),
    ],
)
def test_default_cgroup_is_below_or_next_to_that_of_the_caller(
    tmp_path: Path, controllers: str, own: str, parent: str
) -> None:
    (tmp_path / "own").write_text(own)
    (tmp_path / "mountinfo").write_text(
        f"30 1 0:1 / /cgroup/one rw - cgroup cgroup rw,{controllers}\n32 1 0:3 / /cgroup/two rw - cgroup2 cgroup2 rw\n"
    )
    assert default_parent(mountinfo=str(tmp_path / "mountinfo"), own=str(tmp_path / "own")) == parent
