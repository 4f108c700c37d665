"""Paused containers: their processes do not run, and every other verb behaves as in runc."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.bundles import make_bundle
from tests.support.patience import patience, wait_until
from tests.support.runtime import Runtime

pytestmark = pytest.mark.vm

_COUNT = """
trap 'echo > /data/signalled' USR1
n=0
while :; do n=$((n + 1)); echo $n > /data/count.new; /bin/busybox mv /data/count.new /data/count; done
"""


def test_paused_processes_do_not_run_until_resumed(runtime: Runtime, tmp_path: Path) -> None:
    bundle = str(tmp_path / "bundle")
    make_bundle(bundle, ["/bin/sh", "-c", _COUNT])
    pid = runtime.run_detached(bundle, "c1")
    path = f"{bundle}/rootfs/data/count"
    wait_until(lambda: os.path.exists(path))

    assert runtime("pause", "c1").code == 0
    assert runtime.state("c1")["status"] == "paused"
    assert runtime.state("c1")["pid"] == pid
    with open(path) as file:
        before = file.read()
    again = runtime("pause", "c1")
    assert (again.code, again.errors) == (1, "hawse: container not running: c1 is paused\n")
    refused = runtime("exec", "c1", "/bin/true")
    assert refused.code == 255
    assert "cannot exec in a paused container" in refused.errors
    assert "cannot start a container in the paused state" in runtime("start", "c1").errors
    kept = runtime("delete", "c1")
    assert kept.code == 1
    assert "cannot delete container c1 that is not stopped: paused" in kept.errors
    assert runtime("kill", "c1", "USR1").code == 0, "it arrives when it is resumed"
    with open(path) as file:
        assert file.read() == before, "six commands later"
    assert not os.path.exists(f"{bundle}/rootfs/data/signalled")

    assert runtime("resume", "c1").code == 0
    assert runtime.state("c1")["status"] == "running"
    wait_until(lambda: os.path.exists(f"{bundle}/rootfs/data/signalled"))
    again = runtime("resume", "c1")
    assert again.code == 1
    assert "container not paused: c1" in again.errors


@pytest.mark.parametrize("way", ["kill", "SIGKILL of the proxy"])
def test_paused_container_can_be_killed(runtime: Runtime, tmp_path: Path, way: str) -> None:
    bundle = str(tmp_path / "bundle")
    make_bundle(bundle, ["/bin/sh", "-c", "echo up; sleep 1000"])
    running = runtime.start("run", "--bundle", bundle, "c1", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert running.stdout is not None
    assert running.stdout.readline() == b"up\n"
    assert runtime("pause", "c1").code == 0
    if way == "kill":
        assert runtime("kill", "c1", "KILL").code == 0
    else:
        os.kill(runtime.state("c1")["pid"], signal.SIGKILL)
    assert running.wait(timeout=patience(10)) == 137
    running.stdout.close()


def test_resumed_created_container_is_created(runtime: Runtime, tmp_path: Path) -> None:
    bundle = str(tmp_path / "bundle")
    make_bundle(bundle, ["/bin/sh", "-c", "exit 0"])
    null = subprocess.DEVNULL
    assert runtime.start("create", "--bundle", bundle, "c1", stdin=null, stdout=null, stderr=null).wait() == 0
    assert runtime("pause", "c1").code == 0
    assert runtime.state("c1")["status"] == "paused"
    assert runtime("resume", "c1").code == 0
    assert runtime.state("c1")["status"] == "created"
    assert runtime("pause", "c1").code == 0
    assert runtime("delete", "--force", "c1").code == 0
    missing = runtime("pause", "c1")
    assert (missing.code, missing.errors) == (1, "hawse: container does not exist: c1\n")
