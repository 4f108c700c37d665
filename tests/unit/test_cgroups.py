"""Cgroups of the host: the path that a specification means; cgroups and limits that are created, set and removed."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from hawse.errors import ConfigError, HostError
from hawse.host.cgroup.sandbox_cgroup import HostCgroup, hierarchies, release
from hawse.host.cgroup.systemd import arguments, end_scope, enter_scope
from hawse.oci.limits.cgroups import (
    TASKS,
    CgroupPlan,
    HostLimits,
    default_path,
    expand_slice,
    host_limits,
    plan_cgroup,
    vm_limits,
)
from tests.support.host_processes import Lives, reused

HYBRID = """\
30 25 0:26 / {root} rw - tmpfs tmpfs rw
31 30 0:27 / {root}/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / {root}/cpuset rw,relatime - cgroup cgroup rw,cpuset,clone_children
33 30 0:29 / {root}/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
34 30 0:29 / /elsewhere rw,relatime - cgroup cgroup rw,xattr,name=systemd
35 30 0:30 / {root}/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
"""


@pytest.mark.parametrize(
    ("path", "systemd", "plan"),
    [
        ("", False, CgroupPlan()),
        ("", True, CgroupPlan()),
        ("/", False, CgroupPlan()),
        ("/docker/c1", False, CgroupPlan(path="/docker/c1")),
        ("docker/c1", False, CgroupPlan(path="/docker/c1")),
        ("/a/../../b//c", False, CgroupPlan(path="/b/c")),
        ("//..", False, CgroupPlan()),
        (
            "machine.slice:libpod:1f",
            True,
            CgroupPlan(path="/machine.slice/libpod-1f.scope", slice="machine.slice", unit="libpod-1f.scope"),
        ),
        (
            "kubepods-besteffort-pod5.slice:cri-containerd:1f",
            True,
            CgroupPlan(
                path="/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod5.slice/cri-containerd-1f.scope",
                slice="kubepods-besteffort-pod5.slice",
                unit="cri-containerd-1f.scope",
            ),
        ),
        (
            ":docker:1f",
            True,
            CgroupPlan(path="/system.slice/docker-1f.scope", slice="system.slice", unit="docker-1f.scope"),
        ),
        ("-.slice:x:y.slice", True, CgroupPlan(path="/y.slice", slice="-.slice", unit="y.slice")),
        ("slice:prefix:name", False, CgroupPlan(path="/slice:prefix:name")),
    ],
)
def test_path_of_the_cgroup(path: str, systemd: bool, plan: CgroupPlan) -> None:
    assert plan_cgroup("config.json", path, {}, systemd=systemd) == plan


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/docker/c1", "expected cgroupsPath to be of format slice:prefix:name"),
        ("a.slice:b", "expected cgroupsPath"),
        ("a.slice:b:", "expected cgroupsPath"),
        ("a.slice:../b:c", "expected cgroupsPath"),
        ("a:b:c", "invalid slice name 'a'"),
        ("a--b.slice:b:c", "invalid slice name"),
        (".slice:b:c", "invalid slice name"),
    ],
)
def test_path_that_systemd_would_refuse_is_named(path: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_cgroup("config.json", path, {}, systemd=True)
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("cpu", "vm", "expected"),
    [
        ({"cpus": "0-1"}, True, True), ({"cpus": "0-1"}, False, True), ({"mems": "0"}, True, True),
        ({"shares": 5}, True, True), ({"quota": 50000}, True, True), ({"quota": 50000}, False, False),
        ({}, True, False),
    ],
)  # fmt: skip
def test_container_without_a_path_has_a_default_cgroup_for_limits_of_the_host(
    cpu: dict[str, Any], vm: bool, expected: bool
) -> None:
    of_vm = HostLimits(memory=1, tasks=2) if vm else None
    resources = {"cpu": cpu, "memory": {"limit": 1}}
    plan = plan_cgroup("x", "", resources, systemd=False, of_vm=of_vm, default="/parent/c1")
    assert plan.path == ("/parent/c1" if expected else "")
    assert (plan.vm, plan.limits.cpus, plan.limits.tasks) == (vm, cpu.get("cpus", ""), 2 if vm else 0) or not expected
    assert plan_cgroup("x", "/a", resources, systemd=False, of_vm=of_vm, default="/parent/c1").path == "/a"


def test_default_cgroup_is_a_systemd_scope_with_systemd_cgroup() -> None:
    path = default_path("c1", "/user.slice", systemd=True)
    plan = plan_cgroup("x", "", {"cpu": {"cpus": "0"}}, systemd=True, default=path)
    assert (plan.path, plan.unit) == ("/system.slice/hawse-c1.scope", "hawse-c1.scope")
    assert default_path("c1", "/user.slice", systemd=False) == "/user.slice/c1"
    assert default_path("c1", "/", systemd=False) == "/c1"


@pytest.mark.parametrize(
    ("cpu", "limits"),
    [
        ({}, (0, 0)),
        ({"quota": 50_000}, (150_000, 100_000)),
        ({"quota": 50_000, "period": 20_000}, (70_000, 20_000)),
        ({"quota": -1}, (-1, 100_000)),
        ({"quota": -1, "period": 20_000}, (-1, 20_000)),
        ({"period": 20_000}, (0, 0)),
        ({"quota": None, "period": None}, (0, 0)),
    ],
)
def test_cpu_quota_on_the_host_is_one_cpu_more_than_the_containers(
    cpu: dict[str, int], limits: tuple[int, int]
) -> None:
    host = host_limits({"cpu": cpu}, vm=True)
    assert (host.quota, host.period) == limits
    assert host_limits({"cpu": cpu}, vm=False) == HostLimits(), "the other containers of a pod have no VM"


def test_memory_and_tasks_are_limited_in_the_cgroup_of_the_vm() -> None:
    of_vm = vm_limits(1024, 2048)
    assert of_vm == HostLimits(memory=3 << 30, tasks=TASKS)
    assert vm_limits(1024, 0).memory == 0
    resources = {"cpu": {"quota": 1000}, "memory": {"limit": 1}}
    for path, systemd in (("/a", False), ("a.slice:b:c", True)):
        planned = plan_cgroup("x", path, resources, systemd=systemd, of_vm=of_vm)
        assert planned.vm and planned.limits == HostLimits(memory=3 << 30, tasks=TASKS, quota=101_000, period=100_000)
        joined = plan_cgroup("x", path, resources, systemd=systemd)
        assert not joined.vm and joined.limits == HostLimits()
    assert plan_cgroup("x", "", resources, systemd=False, of_vm=of_vm) == CgroupPlan()


LIMITS = HostLimits(memory=3 << 30, tasks=4096, quota=150_000, period=100_000)


@pytest.mark.parametrize(
    ("limits", "files"),
    [
        (LIMITS, {"memory.max": "3221225472", "pids.max": "4096", "cpu.max": "150000 100000"}),
        (
            LIMITS,
            {
                "memory.limit_in_bytes": "3221225472", "pids.max": "4096", "cpu.cfs_period_us": "100000",
                "cpu.cfs_quota_us": "150000",
            },
        ),
        (HostLimits(quota=-1, period=100_000), {"cpu.max": "max 100000"}),
        (HostLimits(quota=-1, period=100_000), {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "-1"}),
    ],
)  # fmt: skip
def test_limits_are_written_to_the_files_of_either_version(
    tmp_path: Path, limits: HostLimits, files: dict[str, str]
) -> None:
    leaf = tmp_path / "leaf"
    leaf.mkdir()
    for name in files:
        (leaf / name).write_text("")
    (tmp_path / "cgroups").write_text(f"{leaf}\n")
    assert HostCgroup(CgroupPlan(path="/leaf"), str(tmp_path)).limit(limits) == []
    assert {path.name: path.read_text() for path in leaf.iterdir()} == files


def test_limits_that_cannot_be_set_are_warnings(tmp_path: Path) -> None:
    (tmp_path / "leaf").mkdir()
    os.symlink("/dev/full", tmp_path / "leaf" / "memory.max")
    (tmp_path / "cgroups").write_text(f"{tmp_path}/leaf\n")
    quota, memory, tasks = HostCgroup(CgroupPlan(path="/leaf"), str(tmp_path)).limit(LIMITS)
    assert quota == (
        "linux.resources.cpu.quota (plus one CPU for the VM): '150000' is not set in the host's cgroup: "
        f"{tmp_path}/leaf has no controller cpu [enable cpu in its parent cgroups]"
    )
    assert memory == (
        "the sandbox's memory in bytes: '3221225472' is not set in the host's cgroup: "
        f"{tmp_path}/leaf/memory.max: No space left on device [use a value that the parent cgroup allows]"
    )
    assert tasks == (
        "the sandbox's processes and threads: '4096' is not set in the host's cgroup: "
        f"{tmp_path}/leaf has no controller pids [enable pids in its parent cgroups]"
    )


def test_slices_hold_each_other() -> None:
    assert expand_slice("a-b-c.slice") == "/a.slice/a-b.slice/a-b-c.slice"


def test_hierarchies_are_found_once() -> None:
    listed = [(h.mount, h.version, sorted(h.controllers)) for h in hierarchies(HYBRID.format(root="/c"))]
    assert listed == [
        ("/c/cpu", 1, ["cpu", "cpuacct"]),
        ("/c/cpuset", 1, ["cpuset"]),
        ("/c/systemd", 1, ["name=systemd"]),
        ("/c/unified", 2, []),
    ]


@pytest.fixture
def mounted(tmp_path: Path) -> str:
    """A host's cgroups as plain directories; returns the path of its mountinfo."""
    root = tmp_path / "cgroup"
    for name in ("cpu", "cpuset", "systemd", "unified"):
        (root / name).mkdir(parents=True)
    for name in ("cpuset.cpus", "cpuset.mems"):
        (root / "cpuset" / name).write_text("0-3\n")
        (root / "cpuset" / "a").mkdir(exist_ok=True)
        (root / "cpuset" / "a" / name).write_text("1\n")
    (root / "unified" / "cgroup.controllers").write_text("memory pids\n")
    (root / "unified" / "cgroup.subtree_control").write_text("")
    (tmp_path / "mountinfo").write_text(HYBRID.format(root=root))
    (tmp_path / "state").mkdir()
    return str(tmp_path / "mountinfo")


def test_cgroup_is_recorded_before_it_is_created(tmp_path: Path, mounted: str) -> None:
    cgroup = HostCgroup(CgroupPlan(path="/b/c1"), str(tmp_path / "state"))
    # The kernel does not create files in plain directories: two hierarchies cause warnings, the others are used.
    assert cgroup.make(mountinfo=mounted) == [
        f"no cgroup at {tmp_path}/cgroup/{name}/b/c1: No such file or directory" for name in ("cpuset", "unified")
    ]
    assert cgroup.is_made
    paths = [f"{tmp_path}/cgroup/{name}/b/c1" for name in ("cpu", "systemd")]
    assert all(os.path.isdir(path) for path in paths)
    assert (tmp_path / "cgroup/unified/cgroup.subtree_control").read_text() == "+pidsry", "+memory before it"
    assert release(str(tmp_path / "state")) == []
    assert not any(os.path.exists(path) for path in paths)
    assert os.path.isdir(f"{tmp_path}/cgroup/cpu/b"), "the parent directory is kept for its creator"


def test_parent_cpuset_without_cpus_gets_cpus(tmp_path: Path, mounted: str) -> None:
    """For example a cgroup that an engine has created and not configured."""
    contents = {"a": "1", "a/b": "", "a/b/c1": ""}
    for directory, text in contents.items():
        for name in ("cpuset.cpus", "cpuset.mems"):
            path = tmp_path / "cgroup" / "cpuset" / directory / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"{text}\n")
    HostCgroup(CgroupPlan(path="/a/b/c1"), str(tmp_path / "state")).make(mountinfo=mounted)
    for directory in contents:
        assert (tmp_path / "cgroup" / "cpuset" / directory / "cpuset.cpus").read_text().strip() == "1"


def test_process_is_placed_in_its_scope_once(tmp_path: Path, mounted: str) -> None:
    """Each container of a pod has its own scope, which contains its proxy from the start."""
    plan = plan_cgroup("x", "a.slice:b:c1", {}, systemd=True)
    cgroup = HostCgroup(plan, str(tmp_path / "state"))
    calls = []

    def enter(plan: CgroupPlan, pid: int) -> list[str]:
        calls.append((plan.unit, pid, cgroup.is_made))
        return ["without systemd"]

    first, *others = cgroup.place(Lives(7), mountinfo=mounted, enter=enter)
    assert (first, calls) == ("without systemd", [("b-c1.scope", 7, False)])
    assert all(text.startswith("no cgroup at") for text in others)
    assert cgroup.place(Lives(8), mountinfo=mounted, enter=enter) == []
    assert len(calls) == 1


def test_cgroup_that_refuses_a_process_is_a_warning(tmp_path: Path) -> None:
    """A cgroup that could not be created causes no second warning."""
    for name in ("takes", "refuses"):
        (tmp_path / name).mkdir()
    (tmp_path / "takes" / "cgroup.procs").touch()
    os.symlink("/dev/full", tmp_path / "refuses" / "cgroup.procs")  # ENOSPC, as from a cpuset without CPUs
    (tmp_path / "cgroups").write_text("".join(f"{tmp_path}/{name}\n" for name in ("takes", "refuses", "missing")))
    assert HostCgroup(CgroupPlan(path="/x"), str(tmp_path)).add(Lives(7)) == [
        f"cannot move a process into the cgroup {tmp_path}/refuses: No space left on device"
    ]
    assert (tmp_path / "takes" / "cgroup.procs").read_text() == "7"


def test_cgroup_does_not_take_a_process_that_has_got_the_pid_of_an_ended_one(tmp_path: Path) -> None:
    (tmp_path / "cgroup.procs").touch()
    (tmp_path / "cgroups").write_text(f"{tmp_path}\n")
    assert HostCgroup(CgroupPlan(path="/x"), str(tmp_path)).add(reused()) == []
    assert (tmp_path / "cgroup.procs").read_text() == ""


def test_scope_is_not_created_with_a_process_that_has_got_the_pid_of_an_ended_one(tmp_path: Path, mounted: str) -> None:
    cgroup = HostCgroup(plan_cgroup("x", "a.slice:b:c1", {}, systemd=True), str(tmp_path / "state"))

    def enter(plan: CgroupPlan, pid: int) -> list[str]:
        raise AssertionError(f"{pid} in {plan.unit}")

    assert cgroup.place(reused(), mountinfo=mounted, enter=enter) == []
    assert not cgroup.is_made


def test_host_without_cgroups_is_one_warning(tmp_path: Path) -> None:
    (tmp_path / "mountinfo").write_text("30 25 0:26 / / rw - ext4 /dev/x rw\n")
    cgroup = HostCgroup(CgroupPlan(path="/b/c1", limits=HostLimits(shares=5)), str(tmp_path))
    shares, missing = cgroup.make(mountinfo=str(tmp_path / "mountinfo"))
    assert shares.startswith("linux.resources.cpu.shares: '5' is not set in the host's cgroup")
    assert missing == (
        "the host's cgroups cannot be used: engines find no statistics, and the sandbox has no limits there: "
        "none is mounted"
    )
    cgroup.add(Lives(os.getpid()))
    assert release(str(tmp_path)) == []


@pytest.mark.parametrize("field", ["cpus", "mems"])
def test_required_limit_that_cannot_be_set_is_an_error(tmp_path: Path, mounted: str, field: str) -> None:
    limits = HostLimits(**{field: "7"})  # type: ignore[arg-type]
    with pytest.raises(HostError, match=re.escape(f"linux.resources.cpu.{field}: '7' is not set")):
        HostCgroup(CgroupPlan(path="/b/c1", limits=limits), str(tmp_path / "state")).make(mountinfo=mounted)


@pytest.mark.parametrize(("shares", "weight"), [(2, "1"), (1024, "39"), (262144, "10000"), (1, "1")])
def test_shares_become_a_weight(tmp_path: Path, shares: int, weight: str) -> None:
    (tmp_path / "leaf").mkdir()
    (tmp_path / "leaf" / "cpu.weight").write_text("")
    (tmp_path / "cgroups").write_text(f"{tmp_path}/leaf\n")
    assert HostCgroup(CgroupPlan(path="/leaf"), str(tmp_path)).limit(HostLimits(shares=shares)) == []
    assert (tmp_path / "leaf" / "cpu.weight").read_text() == weight


def test_systemd_creates_a_scope_with_the_process() -> None:
    plan = plan_cgroup("x", "a-b.slice:docker:1f", {}, systemd=True)
    words = arguments(plan, 77, busctl="busctl")
    assert words[:8] == [
        "busctl", "call", "org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager",
        "StartTransientUnit", "ssa(sv)a(sa(sv))", "docker-1f.scope",
    ]  # fmt: skip
    assert words[8:10] == ["fail", "6"]
    text = " ".join(words[10:])
    assert text.endswith(" 0")
    assert "PIDs au 1 77 Slice s a-b.slice Delegate b true" in text


def test_systemd_gets_the_limits_that_it_would_reset() -> None:
    plan = plan_cgroup("x", "a.slice:b:c", {"cpu": {"quota": 50_000}}, systemd=True, of_vm=vm_limits(1024, 2048))
    words = arguments(plan, 77, busctl="busctl")
    assert words[9] == "9"
    assert "MemoryMax t 3221225472 TasksMax t 4096 CPUQuotaPerSecUSec t 1500000" in " ".join(words)


def test_missing_systemd_is_a_warning_and_the_path_is_created(tmp_path: Path) -> None:
    plan = plan_cgroup("x", "a.slice:docker:1f", {}, systemd=True)
    none = "the cgroup /a.slice/docker-1f.scope is created without systemd"
    assert enter_scope(CgroupPlan(path="/x"), 1) == []
    assert enter_scope(plan, 1, running=f"{tmp_path}/none") == [f"systemd does not run here: {none}"]
    [absent] = enter_scope(plan, 1, running=str(tmp_path), busctl="/none")
    assert absent.endswith(none)
    program = tmp_path / "busctl"
    program.write_text("#!/bin/sh\necho 'Unit docker-1f.scope already exists.' >&2\nexit 1\n")
    program.chmod(0o755)
    assert enter_scope(plan, 1, running=str(tmp_path), busctl=str(program)) == [
        f"systemd cannot create docker-1f.scope: Unit docker-1f.scope already exists.: {none}"
    ]


@pytest.mark.parametrize(("refusal", "calls"), [([], ["docker-1f.scope"]), (["it refuses"], [])])
def test_only_scopes_created_by_systemd_are_stopped(
    tmp_path: Path, mounted: str, refusal: list[str], calls: list[str]
) -> None:
    """It is stopped after its cgroup was removed: systemd kills all processes of a scope that it stops."""
    plan = plan_cgroup("x", "a.slice:docker:1f", {}, systemd=True)
    directory = Path(f"{tmp_path}/cgroup/cpu{plan.path}")
    ended: list[str] = []

    def end(unit: str) -> None:
        assert not directory.exists()
        ended.append(unit)

    HostCgroup(plan, str(tmp_path / "state")).place(Lives(1), mountinfo=mounted, enter=lambda _plan, _pid: refusal)
    assert directory.is_dir()
    assert release(str(tmp_path / "state"), end=end) == []
    assert ended == calls


def test_unknown_scope_is_not_an_error(tmp_path: Path) -> None:
    program = tmp_path / "systemctl"
    program.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/told\nexit 5\n')  # the scope is not loaded
    program.chmod(0o755)
    for running in (f"{tmp_path}/none", str(tmp_path)):
        end_scope("docker-1f.scope", systemctl=str(program), running=running)
    end_scope("docker-1f.scope", systemctl="/none", running=str(tmp_path))
    assert (tmp_path / "told").read_text() == "stop --quiet -- docker-1f.scope\n"
