"""The life of a container from create to delete, as with an engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.bundles import UNLIMITED, make_bundle, write
from tests.support.patience import patience, wait_until
from tests.support.processes import qemu_of
from tests.support.runtime import Runtime

pytestmark = pytest.mark.vm


def process_is_gone(pid: int) -> bool:
    """Whether a process has ended; PID 1 may not have collected it yet."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("code", [0, 7])
def test_run_has_stdio_and_returns_the_exit_code(runtime: Runtime, tmp_path: Path, code: int) -> None:
    bundle = str(tmp_path / "bundle")
    make_bundle(bundle, ["/bin/sh", "-c", f"cat; echo err >&2; exit {code}"])
    result = runtime("run", "--bundle", bundle, "c1", stdin="from the engine\n")
    assert result.code == code, result.errors
    assert result.output == "from the engine\n"
    assert result.errors == "err\n"


def test_mounts_and_limits_are_those_of_the_specification(runtime: Runtime, tmp_path: Path) -> None:
    bundle = str(tmp_path / "bundle")
    script = "cat /file; echo new > /dir/new; echo no > /readonly/no; ls /readonly; grep Huge /proc/meminfo; ulimit -l"
    spec = make_bundle(bundle, ["/bin/sh", "-c", script], rlimits=[UNLIMITED])
    for name in ("dir", "readonly"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").write_text("a file of its own\n")
    (tmp_path / "readonly" / "kept").write_text("")
    spec["mounts"] += [
        {"destination": "/file", "type": "bind", "source": f"{tmp_path}/file", "options": ["bind"]},
        {"destination": "/dir", "type": "bind", "source": f"{tmp_path}/dir", "options": ["rbind", "rw"]},
        {"destination": "/readonly", "type": "bind", "source": f"{tmp_path}/readonly", "options": ["rbind", "ro"]},
    ]
    spec["linux"]["resources"]["hugepageLimits"] = [{"pageSize": "2MB", "limit": 64 << 20}]
    write(bundle, spec)
    result = runtime("run", "--bundle", bundle, "c1")
    assert result.code == 0, result
    lines = result.output.splitlines()
    assert lines[:2] == ["a file of its own", "kept"]
    assert "HugePages_Total:      32" in lines
    assert lines[-1] == "unlimited"
    assert (tmp_path / "dir" / "new").read_text() == "new\n"
    assert os.listdir(tmp_path / "readonly") == ["kept"]


def test_container_from_create_to_delete(runtime: Runtime, tmp_path: Path) -> None:
    bundle = str(tmp_path / "bundle")
    # It handles SIGTERM: the first process of a PID namespace ignores signals without a handler.
    make_bundle(bundle, ["/bin/sh", "-c", "trap 'exit 9' TERM; echo ready > /data/ready; while :; do sleep 1; done"])
    null = subprocess.DEVNULL
    create = ["create", "--bundle", bundle, "--pid-file", f"{bundle}/pid", "c1"]
    assert runtime.start(*create, stdin=null, stdout=null, stderr=null).wait() == 0
    with open(f"{bundle}/pid") as file:
        pid_text = file.read()
    assert pid_text.isdigit(), "no newline: engines parse the raw bytes"

    state = runtime.state("c1")
    assert state["status"] == "created"
    assert (state["id"], state["bundle"], state["rootfs"]) == ("c1", bundle, f"{bundle}/rootfs")
    assert state["pid"] == int(pid_text)
    assert not os.path.exists(f"{bundle}/rootfs/data/ready")

    assert runtime("start", "c1").code == 0
    wait_until(lambda: os.path.exists(f"{bundle}/rootfs/data/ready"))
    assert runtime.state("c1")["status"] == "running"

    again = runtime("start", "c1")
    assert (again.code, again.errors) == (1, "hawse: cannot start an already running container: c1\n")
    refused = runtime("delete", "c1")
    assert refused.code == 1
    assert "cannot delete container c1 that is not stopped: running" in refused.errors
    taken = runtime("create", "--bundle", bundle, "c1")
    assert taken.code == 1
    assert "container with given ID already exists: c1" in taken.errors

    listed = json.loads(runtime("list", "--format", "json").output)
    assert [(entry["id"], entry["status"]) for entry in listed] == [("c1", "running")]
    assert runtime("list", "--quiet").output == "c1\n"
    assert runtime("list").output.splitlines()[0].split() == ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]

    assert runtime("kill", "c1", "TERM").code == 0
    wait_until(lambda: runtime.state("c1")["status"] == "stopped")
    assert runtime.state("c1")["pid"] == 0
    late = runtime("kill", "c1")
    assert (late.code, late.errors) == (1, "hawse: container not running: c1\n")
    assert runtime("delete", "c1").code == 0
    gone = runtime("state", "c1")
    assert (gone.code, gone.errors) == (1, "hawse: container does not exist: c1\n")
    assert runtime("delete", "--force", "c1").code == 0


@pytest.mark.parametrize("way", ["kill", "kill --all", "signal to the proxy", "SIGKILL of the proxy"])
def test_exit_code_of_a_killed_container_is_128_plus_the_signal(runtime: Runtime, tmp_path: Path, way: str) -> None:
    bundle = str(tmp_path / "bundle")
    make_bundle(bundle, ["/bin/sh", "-c", "trap 'kill -9 -1; exit 143' TERM; echo up; while :; do sleep 0.1; done"])
    running = runtime.start("run", "--bundle", bundle, "c1", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert running.stdout is not None
    assert running.stdout.readline() == b"up\n"
    if way in ("kill", "kill --all"):
        assert runtime(*way.split(), "c1", "KILL").code == 0
        expected = 137
    elif way == "signal to the proxy":
        os.kill(runtime.state("c1")["pid"], signal.SIGTERM)
        expected = 143
    else:
        os.kill(runtime.state("c1")["pid"], signal.SIGKILL)
        expected = 137
    assert running.wait(timeout=patience(10)) == expected
    running.stdout.close()
    assert runtime("list", "--quiet").output == ""


def test_container_of_a_dead_vm_ends_with_the_reason(runtime: Runtime, tmp_path: Path) -> None:
    bundle = str(tmp_path / "bundle")
    make_bundle(bundle, ["/bin/sh", "-c", "echo up; sleep 1000"])
    running = runtime.start(
        "run", "--bundle", bundle, "c1", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert running.stdout is not None
    assert running.stdout.readline() == b"up\n"
    monitor = runtime.monitor("c1")
    os.kill(qemu_of(monitor), signal.SIGKILL)
    _, errors = running.communicate(timeout=patience(10))
    assert running.returncode == 1
    assert b"hawse: QEMU was killed by signal 9" in errors


def test_all_processes_end_with_a_killed_monitor(runtime: Runtime, tmp_path: Path) -> None:
    bundle = str(tmp_path / "bundle")
    make_bundle(bundle, ["/bin/sh", "-c", "sleep 1000"])
    pid = runtime.run_detached(bundle, "c1")
    os.kill(runtime.monitor("c1"), signal.SIGKILL)
    wait_until(lambda: process_is_gone(pid))
    assert runtime.state("c1")["status"] == "stopped"
    assert runtime("delete", "c1").code == 0


def test_exec_ends_with_the_container(runtime: Runtime, tmp_path: Path) -> None:
    bundle = str(tmp_path / "bundle")
    make_bundle(bundle, ["/bin/sh", "-c", "sleep 1000"])
    runtime.run_detached(bundle, "c1")
    beside = runtime.start(
        "exec", "c1", "/bin/sh", "-c", "echo up; sleep 1000", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    assert beside.stdout is not None
    assert beside.stdout.readline() == b"up\n"
    assert runtime("kill", "c1", "KILL").code == 0
    assert beside.wait(timeout=patience(10)) == 137
    beside.stdout.close()


def test_container_is_deleted_while_it_is_created(runtime: Runtime, tmp_path: Path) -> None:
    bundle = str(tmp_path / "bundle")
    make_bundle(bundle, ["/bin/true"])
    null = subprocess.DEVNULL
    creating = runtime.start("create", "--bundle", bundle, "c1", stdin=null, stdout=null, stderr=subprocess.PIPE)
    wait_until(lambda: os.path.exists(f"{runtime.root}/c1/console.log"))
    assert runtime("delete", "--force", "c1").code == 0
    _, errors = creating.communicate(timeout=patience(10))
    assert (creating.returncode, errors) == (1, b"hawse: container c1 was deleted while it was created\n")


def test_delete_removes_the_remains_of_a_killed_create(runtime: Runtime, tmp_path: Path) -> None:
    bundle = str(tmp_path / "bundle")
    make_bundle(bundle, ["/bin/true"])
    null = subprocess.DEVNULL
    creating = runtime.start("create", "--bundle", bundle, "c1", stdin=null, stdout=null, stderr=null)
    wait_until(lambda: os.path.exists(f"{runtime.root}/c1/console.log"))
    creating.kill()
    creating.wait()
    assert runtime("delete", "--force", "c1").code == 0
    assert os.listdir(runtime.root) == []
