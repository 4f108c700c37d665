"""Usage and limits of a container: ps, events and update."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.bundles import make_bundle, write
from tests.support.patience import patience, wait_until
from tests.support.pod_bundles import FOREVER
from tests.support.running import running_container
from tests.support.runtime import Runtime

pytestmark = pytest.mark.vm
MIB = 1 << 20


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Runtime, int]]:
    """A running container with limits, and the pid of its proxy."""
    directory = str(tmp_path_factory.mktemp("usage"))
    bundle = f"{directory}/bundle"
    spec = make_bundle(bundle, FOREVER)
    spec["linux"]["resources"] |= {"memory": {"limit": 64 * MIB}, "pids": {"limit": 50}}
    spec["mounts"] = [m | {"options": ["ro"]} if m["type"] == "cgroup" else m for m in spec["mounts"]]
    write(bundle, spec)
    with running_container(directory, bundle, "c1") as runtime:
        yield runtime, int(runtime.state("c1")["pid"])


def cgroup(runtime: Runtime, name: str) -> str:
    """The content of a file in the container's cgroup in the guest."""
    return runtime("exec", "c1", "/bin/cat", f"/sys/fs/cgroup/{name}").output.strip()


def test_pids_are_those_of_the_host_with_the_names_of_the_programs(running: tuple[Runtime, int]) -> None:
    """As for `docker top` (moby daemon/top_unix.go): pids in JSON, and `ps` of the host for them."""
    runtime, pid = running
    beside = runtime.start("exec", "c1", "/bin/sh", "-c", "echo up; sleep 1000", stdout=subprocess.PIPE)
    assert beside.stdout is not None
    assert beside.stdout.readline() == b"up\n"
    pids = json.loads(runtime("ps", "--format", "json", "c1").output)
    assert len(pids) == 2
    assert pids[0] == pid
    shown = subprocess.run(["ps", "-o", "args=", *map(str, pids)], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines() == [
        "hawse[c1]: /bin/sh -c while :; do sleep 3600; done",
        "hawse[c1]: /bin/sh -c echo up; sleep 1000",
    ]
    lines = runtime("ps", "c1", "-ef").output.splitlines()
    assert [line.split()[1] for line in lines] == ["PID", *map(str, pids)]
    missing = runtime("ps", "c1", "-o", "args")
    assert (missing.code, "leave the column PID out" in missing.errors) == (1, True)
    beside.kill()
    beside.wait()
    beside.stdout.close()
    assert runtime("kill", "--all", "c1", "TERM").code == 0
    wait_until(lambda: json.loads(runtime("ps", "--format", "json", "c1").output) == [pid])


def test_table_has_the_processes_of_the_guest(running: tuple[Runtime, int]) -> None:
    runtime, _ = running
    lines = [line.split(maxsplit=7) for line in runtime("ps", "c1").output.splitlines()]
    assert lines[0] == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    assert lines[1][:3] == ["0", "1", "0"]
    assert lines[1][7] == "/bin/sh -c while :; do sleep 3600; done"
    assert [(line[2], line[7]) for line in lines[2:]] == [("1", "sleep 3600")]


def test_statistics_are_those_of_the_cgroup_in_the_guest(running: tuple[Runtime, int]) -> None:
    runtime, _ = running
    result = runtime("events", "--stats", "c1")
    event = json.loads(result.output)
    assert (event["type"], event["id"]) == ("stats", "c1")
    data = event["data"]
    assert data["cpu"]["usage"]["total"] > 0
    assert data["cpu"]["usage"]["user"] + data["cpu"]["usage"]["kernel"] <= data["cpu"]["usage"]["total"] + 1000
    assert 0 < data["memory"]["usage"]["usage"] < data["memory"]["usage"]["limit"]
    assert data["memory"]["raw"]["anon"] > 0
    assert data["pids"]["limit"] == 50
    assert data["pids"]["current"] >= 1


def test_limits_of_a_running_container_change(running: tuple[Runtime, int], tmp_path: Path) -> None:
    runtime, _ = running
    options = ["--memory", "128m", "--memory-swap", "128m", "--cpu-share", "512", "--cpu-quota", "50000"]
    assert runtime("update", *options, "c1").code == 0
    assert cgroup(runtime, "memory.max") == str(128 * MIB)
    assert cgroup(runtime, "cpu.max") == "50000 100000"
    weight = cgroup(runtime, "cpu.weight")
    assert 1 < int(weight) < 100
    # As go-runc does, with device rules and the other fields that CRI of containerd sends.
    sent = {
        "devices": [{"allow": False, "access": "rwm"}], "memory": {"limit": 96 * MIB, "swap": 0}, "cpu": {"period": 0},
        "pids": {"limit": 40}, "blockIO": {"weight": 0}, "hugepageLimits": [], "unified": {"memory.low": "4096"},
    }  # fmt: skip
    refused = runtime("update", "--resources=-", "c1", stdin=json.dumps(sent))
    assert (refused.code, "memory.swap" in refused.errors) == (0, False), refused.errors
    assert cgroup(runtime, "memory.max") == str(96 * MIB)
    assert cgroup(runtime, "memory.low") == "4096"
    assert cgroup(runtime, "pids.max") == "40"
    assert (cgroup(runtime, "cpu.max"), cgroup(runtime, "cpu.weight")) == ("50000 100000", weight), "as they were"
    # The same limits again, as a kubelet sends them: neither the guest nor the monitor, which is stopped, is called.
    monitor = runtime.monitor("c1")
    os.kill(monitor, signal.SIGSTOP)
    try:
        again = runtime("update", "--resources=-", "c1", stdin=json.dumps(sent))
        assert (again.code, again.errors) == (0, "")
    finally:
        os.kill(monitor, signal.SIGCONT)
    (tmp_path / "resources.json").write_text(json.dumps({"cpu": {"quota": -1}, "pids": {"limit": -1}}))
    assert runtime("update", "--resources", str(tmp_path / "resources.json"), "c1").code == 0
    assert cgroup(runtime, "cpu.max").split()[0] == "max"
    assert cgroup(runtime, "pids.max") == "max"
    # The device rules are still those of the specification: only the default nodes.
    assert runtime("exec", "c1", "/bin/cat", "/dev/null").code == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--blkio-weight", "100"], "blockIO cannot be changed while the container runs"),
        (["--cpu-rt-runtime", "5"], "cpu.realtimeRuntime cannot be changed"),
        (["--kernel-memory", "1m"], "memory.kernel cannot be changed"),
        (["--l3-cache-schema", "L3:0=f"], "intelRdt cannot be changed"),
        (["--cpu-quota", "5"], "update: linux.resources.cpu: crun update in the guest: "),
        (["--cpuset-cpus", "99999"], "update: linux.resources.cpu.cpus: '99999': this host does not have all of them"),
        (["--cpuset-cpus", "0"], "the container has no cgroup there: config.json has neither linux.cgroupsPath nor a"),
        (["--memory", "1g", "--memory-swap", "1g"], " [set vm.memory_mib in the configuration to 2048 or more"),
        (["--memory", "much"], "--memory 'much' is not a size"),
        (["--resources", "/none.json"], "/none.json: no such file"),
    ],
)
def test_error_names_a_limit_that_cannot_be_applied(
    running: tuple[Runtime, int], options: list[str], words: str
) -> None:
    runtime, _ = running
    result = runtime("update", *options, "c1")
    assert result.code == 1
    assert words in result.errors


def test_events_have_statistics_at_intervals_and_oom_kills(running: tuple[Runtime, int]) -> None:
    runtime, _ = running
    stream = runtime.start("events", "--interval", "50ms", "c1", stdout=subprocess.PIPE)
    assert stream.stdout is not None
    assert [json.loads(stream.stdout.readline())["type"] for _ in range(3)] == ["stats"] * 3
    assert runtime("exec", "c1", "/bin/busybox", "tail", "/dev/zero").code == 137
    lines = iter(stream.stdout.readline, b"")
    assert next(event for event in map(json.loads, lines) if event["type"] != "stats") == {"type": "oom", "id": "c1"}
    stream.kill()
    stream.wait()
    stream.stdout.close()


def test_end_is_reported_with_its_cause(runtime: Runtime, tmp_path: Path) -> None:
    bundle = str(tmp_path / "bundle")
    spec = make_bundle(bundle, ["/bin/sh", "-c", "read line; exec /bin/busybox tail /dev/zero"])
    spec["linux"]["resources"]["memory"] = {"limit": 16 * MIB}
    write(bundle, spec)
    running = runtime.start("run", "--keep", "--bundle", bundle, "c1", stdin=subprocess.PIPE)
    assert running.stdin is not None
    wait_until(lambda: '"running"' in runtime("state", "c1").output)
    stream = runtime.start("events", "--interval=1s", "c1", stdout=subprocess.PIPE)
    assert stream.stdout is not None
    assert json.loads(stream.stdout.readline())["type"] == "stats"
    running.stdin.write(b"go\n")
    running.stdin.close()
    assert running.wait(timeout=patience(20)) == 137
    lines = [json.loads(line)["type"] for line in stream.stdout.read().splitlines()]
    assert lines.count("oom") == 1
    assert stream.wait(timeout=patience(10)) == 0
    stream.stdout.close()
    for verb in (["events", "--stats"], ["ps"], ["update", "--memory", "1g"]):
        late = runtime(*verb, "c1")
        assert late.code == 1
        assert "container not running" in late.errors
