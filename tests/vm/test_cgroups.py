"""The processes of a sandbox are in the cgroups of this host, of either version, and nothing is left afterwards."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from hawse.oci.limits.cpusets import written
from tests.support.bundles import make_bundle, write
from tests.support.manifests import DEPLOY
from tests.support.mount_table import cgroup_hierarchies
from tests.support.patience import wait_until
from tests.support.pod_bundles import FOREVER
from tests.support.processes import children, command_line, program_of, qemu_of
from tests.support.runtime import Runtime

pytestmark = pytest.mark.vm


def mounts() -> list[str]:
    return [hierarchy.mount for hierarchy in cgroup_hierarchies()]


def cgroups_of(pid: int) -> set[str]:
    """The paths of a process's cgroups in the hierarchies that are mounted here; equal paths of several are one.

    The kernel also lists hierarchies that only other mount namespaces have (Linux kernel/cgroup/cgroup.c,
    proc_cgroup_show()), and hawse cannot reach those.
    """
    mounted = {hierarchy.controllers for hierarchy in cgroup_hierarchies()}
    lines = [line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    return {path for _, names, path in lines if frozenset(filter(None, names.split(","))) in mounted}


def described(pid: int) -> str:
    """The arguments, state and cgroups of a process, for the message of a failed test."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    return f"{command_line(pid)}\n{stat}\n{Path(f'/proc/{pid}/cgroup').read_text()}"


def allowed_of(process: int | str) -> str:
    """The list of CPUs that a process may use."""
    with open(f"/proc/{process}/status") as status:
        return next(line.split()[1] for line in status if line.startswith("Cpus_allowed_list"))


def allowed_cpus() -> tuple[str, str]:
    """The first and the last CPU that this process may use."""
    numbers = allowed_of("self").replace("-", ",").split(",")
    return numbers[0], numbers[-1]


def directories(path: str) -> list[str]:
    return [f"{mount}{path}" for mount in mounts() if os.path.isdir(f"{mount}{path}")]


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[str]:
    """The path of a private cgroup, which is removed after the test."""
    path = f"/engine-test-{os.getpid()}-{tmp_path.name}.slice"
    yield path
    for directory in directories(path):
        os.rmdir(directory)


def write_bundle(directory: Path, path: str, **resources: object) -> str:
    bundle = str(directory / "bundle")
    spec = make_bundle(bundle, FOREVER)
    spec["linux"]["cgroupsPath"] = path
    spec["linux"]["resources"] |= resources
    write(bundle, spec)
    return bundle


def test_all_processes_of_a_sandbox_are_in_its_cgroup(parent: str, runtime: Runtime, tmp_path: Path) -> None:
    path = f"{parent}/c1"
    bundle = write_bundle(tmp_path, path)
    pid = runtime.run_detached(bundle, "c1")
    assert directories(path) == [f"{mount}{path}" for mount in mounts()]
    with runtime.start("exec", "c1", "/bin/sh", "-c", "echo up; sleep 1000", stdout=subprocess.PIPE) as beside:
        try:
            assert beside.stdout is not None
            assert beside.stdout.readline() == b"up\n"
            monitor = runtime.monitor("c1")
            proxies = json.loads(runtime("ps", "--format", "json", "c1").output)
            assert (len(proxies), proxies[0]) == (2, pid)
            # The kernel shows an ended process in the root of version 1 (Linux kernel/cgroup/cgroup.c,
            # proc_cgroup_show()), for example the VM that wrote the template while the kernel frees its memory. It has
            # no program any more.
            running = [process for process in children(monitor) if program_of(process)]
            assert qemu_of(monitor) in running
            for process in (*running, *proxies):
                assert cgroups_of(process) == {path}, described(process)
            assert cgroups_of(monitor) == {path, "/hawse.control"} - ({path} if len(mounts()) == 1 else set()), (
                "except its CPU time"
            )
            assert path not in cgroups_of(os.getpid())
        finally:
            killed = runtime("kill", "c1", "KILL")
    assert killed.code == 0
    wait_until(lambda: runtime.state("c1")["status"] == "stopped")
    deleted = runtime("delete", "c1")
    assert (deleted.code, deleted.errors) == (0, "")
    assert directories(path) == []


def test_cgroup_limits_memory_tasks_and_cpu_time_of_the_sandbox(parent: str, runtime: Runtime, tmp_path: Path) -> None:
    """The VM's memory and 2 GiB, and one CPU more than the container's quota; an update changes the CPU time only."""
    path = f"{parent}/c1"
    runtime.run_detached(write_bundle(tmp_path, path, cpu={"quota": 50000, "period": 100000}), "c1")
    assert read_limits(path) == {"memory": 3 << 30, "tasks": 4096, "quota": 150000}
    updated = runtime("update", "--cpu-quota", "80000", "c1")
    assert (updated.code, updated.errors) == (0, "")
    assert read_limits(path) == {"memory": 3 << 30, "tasks": 4096, "quota": 180000}


def test_vm_that_exceeds_the_memory_of_the_sandbox_is_killed(parent: str, runtime: Runtime, tmp_path: Path) -> None:
    """The host kernel kills it. The test lowers the limit later, since hawse refuses a limit that is too low."""
    path = f"{parent}/c1"
    runtime.run_detached(write_bundle(tmp_path, path), "c1")
    [usage] = [file for name in ("memory.current", "memory.usage_in_bytes") for file in files_of(path, name)]
    [limit] = [file for name in ("memory.max", "memory.limit_in_bytes") for file in files_of(path, name)]
    limit.write_text(str(int(usage.read_text()) + (16 << 20)))
    runtime("exec", "c1", "/bin/sh", "-c", "dd if=/dev/zero of=/dev/file bs=1M count=300", seconds=120)
    wait_until(lambda: runtime.state("c1")["status"] == "stopped", seconds=60)
    assert "QEMU was killed by signal 9" in runtime.state("c1")["failure"]
    assert runtime("delete", "c1").code == 0
    assert directories(path) == []


def files_of(path: str, name: str) -> list[Path]:
    """The files of this name of a cgroup, in all hierarchies."""
    return [Path(f"{mount}{path}", name) for mount in mounts() if Path(f"{mount}{path}", name).exists()]


def test_error_names_a_parent_cgroup_that_allows_too_little_memory(
    parent: str, runtime: Runtime, tmp_path: Path
) -> None:
    """As for a pod whose RuntimeClass has no overhead. With the overhead of deploy/kubernetes the pod runs."""
    bundle = write_bundle(tmp_path, f"{parent}/c1")
    with open(f"{bundle}/config.json") as file:
        spec = json.load(file)
    annotations = {"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-memory": str(64 << 20)}
    write(bundle, spec | {"annotations": annotations})
    file_of = limit_memory(parent, 64)
    refused = runtime("create", "--bundle", bundle, "c1")
    assert refused.code == 1
    assert f"hawse: {file_of} allows 64 MiB, and the virtual machine needs " in refused.errors
    assert "for a Kubernetes pod by an `overhead` of its RuntimeClass" in refused.errors
    assert (os.listdir(runtime.root), directories(f"{parent}/c1")) == ([], [])

    [overhead] = re.findall(r"^ +memory: (\d+)Mi$", (DEPLOY / "runtimeclass.yaml").read_text(), re.MULTILINE)
    limit_memory(parent, 64 + int(overhead))
    runtime.run_detached(bundle, "c1")
    assert Path(f"{bundle}/said").read_text() == "", "no warning"
    for _ in range(5):
        assert runtime("exec", "c1", "/bin/sh", "-c", "ls -R /bin /etc >/dev/null").code == 0


def limit_memory(path: str, mib: int) -> Path:
    """Create a cgroup with a memory limit; returns the file with the limit."""
    cgroup_file = []
    for mount in mounts():
        os.makedirs(f"{mount}{path}", exist_ok=True)
        cgroup_file += [Path(f"{mount}{path}", name) for name in ("memory.max", "memory.limit_in_bytes")]
    files = [file for file in cgroup_file if file.exists()]
    if not files:
        pytest.skip("this host's cgroups have no controller of memory")
    files[0].write_text(str(mib << 20))
    return files[0]


def read_limits(path: str) -> dict[str, int]:
    """The limits of a cgroup of either version, by their names."""
    names = {
        "memory.max": "memory", "memory.limit_in_bytes": "memory", "pids.max": "tasks", "cpu.max": "quota",
        "cpu.cfs_quota_us": "quota",
    }  # fmt: skip
    files = [(Path(directory, file), limit) for directory in directories(path) for file, limit in names.items()]
    return {limit: int(file.read_text().split()[0]) for file, limit in files if file.exists()}


@pytest.mark.parametrize("end", ["a program that is none", "a killed monitor"])
def test_cgroup_is_removed(parent: str, runtime: Runtime, tmp_path: Path, end: str) -> None:
    path = f"{parent}/c1"
    bundle = write_bundle(tmp_path, path)
    if end == "a program that is none":
        with open(f"{bundle}/config.json") as file:
            spec = json.load(file)
        spec["process"]["args"] = ["/none"]
        write(bundle, spec)
        assert runtime("run", "--bundle", bundle, "c1").code == 127
    else:
        runtime.run_detached(bundle, "c1")
        assert directories(path)
        os.kill(runtime.monitor("c1"), 9)
        deleted = runtime("delete", "--force", "c1")
        assert (deleted.code, deleted.errors) == (0, "")
    assert directories(path) == []


def test_only_limits_for_the_host_are_set_on_the_host(parent: str, runtime: Runtime, tmp_path: Path) -> None:
    path = f"{parent}/c1"
    first, last = allowed_cpus()
    cpu = {"cpus": first, "shares": 2048}
    bundle = write_bundle(tmp_path, path, cpu=cpu, memory={"limit": 32 << 20}, pids={"limit": 5})
    pid = runtime.run_detached(bundle, "c1")

    def file_of(name: str) -> str:
        [files] = [f"{directory}/{name}" for directory in directories(path) if os.path.exists(f"{directory}/{name}")]
        with open(files) as opened:
            return opened.read().strip()

    monitor = runtime.monitor("c1")
    assert file_of("cpuset.cpus") == first
    assert allowed_of(monitor) == allowed_of(pid) == first
    assert runtime("exec", "c1", "/bin/busybox", "nproc").output == "1\n", "as many as it may use"
    weights = {"cpu.shares": "2048", "cpu.weight": "79"}
    assert any(os.path.exists(f"{d}/{name}") and file_of(name) == text for name, text in weights.items()
               for d in directories(path))  # fmt: skip
    # QEMU needs more than the container's limit, which the cgroup in the guest has.
    assert runtime("exec", "c1", "/bin/cat", "/sys/fs/cgroup/memory.max").output == f"{32 << 20}\n"
    for name in ("memory.limit_in_bytes", "memory.max"):
        for directory in directories(path):
            if os.path.exists(f"{directory}/{name}"):
                with open(f"{directory}/{name}") as file:
                    assert file.read().strip() != str(32 << 20)
    assert runtime("update", "--cpuset-cpus", last, "--cpu-share", "1024", "c1").code == 0
    assert (file_of("cpuset.cpus"), allowed_of(monitor)) == (last, last)
    refused = runtime("update", "--cpuset-cpus", "99999", "c1")
    sentence = "linux.resources.cpu.cpus: '99999': this host does not have all of them: its CPUs are "
    assert (refused.code, sentence in refused.errors) == (1, True)


def test_container_runs_when_no_cgroup_can_be_created(runtime: Runtime, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path, "/engine-test/c1", memory={"limit": 64 << 20})
    without = ["unshare", "--mount", "sh", "-c", 'umount -R /sys/fs/cgroup && exec "$@"', "sh"]
    null = subprocess.DEVNULL
    argv = [*without, *runtime.argv("create", "--bundle", bundle, "c1")]
    with open(f"{bundle}/errors", "w+") as errors:
        assert subprocess.run(argv, stdin=null, stdout=null, stderr=errors, check=False).returncode == 0
        errors.seek(0)
        assert errors.read() == (
            "hawse: warning: the host's cgroups cannot be used: engines find no statistics, and the sandbox has no "
            "limits there: none is mounted\n"
        )
    assert runtime("start", "c1").code == 0
    assert runtime("delete", "--force", "c1").code == 0
    write_bundle(tmp_path / "pinned", "/engine-test/c1", cpu={"cpus": "0"})
    argv = [*without, *runtime.argv("create", "--bundle", f"{tmp_path}/pinned/bundle", "c1")]
    done = subprocess.run(argv, stdin=null, stdout=null, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert "linux.resources.cpu.cpus: '0' is not set in the host's cgroup" in done.stderr
    assert os.listdir(runtime.root) == []


def test_vm_of_a_pod_is_in_the_cgroup_of_its_sandbox(parent: str, runtime: Runtime, tmp_path: Path) -> None:
    kind, sandbox = "io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"
    pids = {}
    for name, role in (("pod", {kind: "sandbox"}), ("c1", {kind: "container", sandbox: "pod"})):
        bundle = write_bundle(tmp_path / name, f"{parent}/{name}")
        with open(f"{bundle}/config.json") as file:
            spec = json.load(file)
        write(bundle, spec | {"annotations": role})
        pids[name] = runtime.run_detached(bundle, name)
        assert Path(f"{bundle}/said").read_text() == "", "no warning"
    monitor = runtime.monitor("pod")
    assert cgroups_of(monitor) - {"/hawse.control"} <= cgroups_of(pids["pod"]) == {f"{parent}/pod"}
    assert cgroups_of(pids["c1"]) == {f"{parent}/c1"}, Path(f"/proc/{pids['c1']}/cgroup").read_text()
    assert json.loads(runtime("ps", "--format", "json", "c1").output) == [pids["c1"]]

    # A kubelet assigns CPUs to containers, and never to a sandbox, so the VM may use the CPUs of all containers.
    first, last = allowed_cpus()
    everywhere = allowed_of(monitor)
    assert runtime("update", "--cpuset-cpus", last, "c1").code == 0
    assert allowed_of(monitor) == allowed_of(pids["c1"]) == last
    bundle = write_bundle(tmp_path / "c2", f"{parent}/c2", cpu={"cpus": first})
    with open(f"{bundle}/config.json") as file:
        spec = json.load(file)
    write(bundle, spec | {"annotations": {kind: "container", sandbox: "pod"}})
    runtime.run_detached(bundle, "c2")
    assert allowed_of(monitor) == written({int(first), int(last)})
    for name, left in (("c1", first), ("c2", everywhere)):
        deleted = runtime("delete", "--force", name)
        assert (deleted.code, deleted.errors, directories(f"{parent}/{name}")) == (0, "", [])
        assert allowed_of(monitor) == left
    assert runtime("delete", "--force", "pod").code == 0
    assert directories(f"{parent}/pod") == []


def test_pod_without_a_share_of_the_cpu_is_stopped_in_time(parent: str, runtime: Runtime, tmp_path: Path) -> None:
    """A pod without requests has the smallest weight, here on a busy node. Without hawse's control cgroup, stopping a
    container took more than a minute, and its VM was killed. The test also checks OOM scores: those of containers are
    as requested, and the monitor is killed last."""
    kind, sandbox = "io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"
    roles = {
        "pod": ({kind: "sandbox"}, 2),
        "one": ({kind: "container", sandbox: "pod"}, 1000),
        "two": ({kind: "container", sandbox: "pod"}, 500),
    }
    pids = {}
    for name, (role, score) in roles.items():
        bundle = write_bundle(tmp_path / name, f"{parent}/{name}")
        with open(f"{bundle}/config.json") as file:
            spec = json.load(file)
        spec["process"]["oomScoreAdj"] = score
        write(bundle, spec | {"annotations": role})
        pids[name] = runtime.run_detached(bundle, name)
    monitor = runtime.monitor("pod")
    with open(f"{runtime.root}/pod/programs") as file:
        programs = [int(line.split()[0]) for line in file]
    assert [score_of(pid) for pid in (*programs, *children(programs[1]))] == [1000, 1000, 1000], (
        "QEMU's and virtiofsd's"
    )
    assert {name: score_of(pid) for name, pid in pids.items()} == {"pod": 2, "one": 1000, "two": 500}
    assert score_of(monitor) == score_of(os.getpid())
    pipe = subprocess.PIPE
    script = "cat /proc/self/oom_score_adj; read x"
    with runtime.start("exec", "two", "/bin/sh", "-c", script, stdin=pipe, stdout=pipe) as beside:
        assert beside.stdin is not None
        assert beside.stdout is not None
        assert beside.stdout.readline() == b"500\n"
        assert sorted(map(score_of, json.loads(runtime("ps", "--format", "json", "two").output))) == [500, 500]

    for directory in directories(parent):
        for name, least in (("cpu.shares", "2"), ("cpu.weight", "1")):
            if os.path.exists(f"{directory}/{name}"):
                Path(directory, name).write_text(least)
    with ExitStack() as undo:
        for _ in range(2 * (os.cpu_count() or 1)):
            busy = undo.enter_context(subprocess.Popen(["/bin/sh", "-c", "while :; do :; done"]))
            undo.callback(busy.kill)
        began = time.monotonic()
        assert runtime("kill", "one", "KILL", seconds=60).code == 0
        wait_until(lambda: runtime.state("one")["status"] == "stopped")
        deleted = runtime("delete", "one", seconds=60)
        assert (deleted.code, deleted.errors) == (0, "")
        assert score_of(programs[0]) == 500
        deleted = runtime("delete", "--force", "two", seconds=60)
        assert (deleted.code, deleted.errors) == (0, "")
        assert cgroups_of(programs[0]) == {f"{parent}/pod"}, "the VM is back in its cgroup"
        deleted = runtime("delete", "--force", "pod", seconds=60)
        assert (deleted.code, deleted.errors) == (0, "")
        assert time.monotonic() - began < 40, "for three containers"


def test_default_cgroup_for_cpus_is_that_of_runc(runtime: Runtime, tmp_path: Path) -> None:
    """Without cgroupsPath the sandbox has a private cgroup with only these CPUs."""
    first, _ = allowed_cpus()
    bundle = write_bundle(tmp_path, "", cpu={"cpus": first, "mems": "0"})
    spec = json.loads(Path(bundle, "config.json").read_text())
    del spec["linux"]["cgroupsPath"]
    write(bundle, spec)
    name = f"default-{os.getpid()}"
    theirs = ["runc", "--root", f"{tmp_path}/runc"]
    null = subprocess.DEVNULL
    subprocess.run([*theirs, "run", "--detach", "--pid-file", f"{bundle}/pid", "-b", bundle, name], stdin=null,
                   stdout=null, check=True)  # fmt: skip
    try:
        expected = cpuset_of(int(Path(bundle, "pid").read_text()))
    finally:
        subprocess.run([*theirs, "delete", "--force", name], check=True)
    pid = runtime.run_detached(bundle, name)
    monitor = runtime.monitor(name)
    assert cpuset_of(pid) == cpuset_of(monitor) == expected
    assert allowed_of(monitor) == allowed_of(pid) == first
    deleted = runtime("delete", "--force", name)
    assert (deleted.code, deleted.errors, directories(expected)) == (0, "", [])


def cpuset_of(pid: int) -> str:
    """The path of a process in the cpuset hierarchy."""
    with open(f"/proc/{pid}/cgroup") as file:
        lines = [line.rstrip("\n").split(":", 2) for line in file]
    return next((path for _, names, path in lines if "cpuset" in names.split(",")), lines[-1][2])


def score_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


def test_systemd_path_is_accepted_without_systemd(parent: str, runtime: Runtime, tmp_path: Path) -> None:
    """containerd-shim and conmon pass --systemd-cgroup; `delete --force` of the shim does not."""
    above = parent.strip("/").replace("-", "_").replace("_slice", ".slice")
    bundle = write_bundle(tmp_path, f"{above}:cri:c1")
    null = subprocess.DEVNULL
    argv = runtime.argv("create", "--bundle", bundle, "--pid-file", f"{bundle}/pid", "c1")
    argv.insert(1, "--systemd-cgroup")
    with open(f"{bundle}/errors", "w+") as errors:
        assert subprocess.run(argv, stdin=null, stdout=null, stderr=errors, check=False).returncode == 0
        errors.seek(0)
        text = errors.read()
    path = f"/{above}/cri-c1.scope"
    assert text == f"hawse: warning: systemd does not run here: the cgroup {path} is created without systemd\n"
    with open(f"{bundle}/pid") as file:
        assert cgroups_of(int(file.read())) == {path}
    assert runtime("delete", "--force", "c1").code == 0
    assert directories(path) == []
    for directory in directories(f"/{above}"):
        os.rmdir(directory)
    wrong = write_bundle(tmp_path / "wrong", "/docker/c1")
    argv[argv.index(bundle)] = wrong
    done = subprocess.run(argv, stdin=null, stdout=null, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert "expected cgroupsPath to be of format slice:prefix:name" in done.stderr
