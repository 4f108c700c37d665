"""Notifications of a container (sd_notify(3)) to the service manager of the host, and their senders."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.bundles import make_bundle, write
from tests.support.notified import Notified
from tests.support.patience import patience
from tests.support.pod_bundles import role
from tests.support.programs import compiled_file
from tests.support.runtime import Runtime

pytestmark = pytest.mark.vm

SOURCE = str(Path(__file__).with_name("notify.c"))
#: Notifications of a program. Each contains an assignment that must not reach the host.
STARTS = "notify 'STATUS=starting\nNOTIFYACCESS=all' 'FDSTORE=1'"
IS_READY = "notify 'READY=1\nSTATUS=up\nMAINPID=7' barrier"
RUNS = "notify 'WATCHDOG=1' 'RELOADING=1\nMONOTONIC_USEC=1' 'X=y'"
ENDS = "notify 'STOPPING=1\nERRNO=5'"


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory whose path fits into a socket's address."""
    with tempfile.TemporaryDirectory(dir="/tmp") as new_directory:
        yield Path(new_directory)


def bundle(
    directory: Path, name: str, script: str, *, mounts: list[Any] | None = None, readonly: bool = False, **process: Any
) -> str:
    """A container of the pod "pod", for a user without capabilities."""
    path = str(directory / name)
    process |= {"user": {"uid": 1000, "gid": 1000}, "capabilities": {}}
    spec = make_bundle(path, ["/bin/sh", "-c", script], **process)
    subprocess.run(["cp", compiled_file(SOURCE), f"{path}/rootfs/bin/notify"], check=True)
    spec["annotations"] = role(name)
    spec["mounts"] += mounts or []
    spec["root"]["readonly"] = readonly
    write(path, spec)
    return path


def begin(runtime: Runtime, address: str, *words: str) -> subprocess.Popen[bytes]:
    """Start a command with NOTIFY_SOCKET in its environment."""
    null = subprocess.DEVNULL
    environment = os.environ | {"NOTIFY_SOCKET": address}
    return subprocess.Popen(runtime.argv(*words), env=environment, stdin=null, stdout=null, stderr=null)


def test_notifications_reach_the_service_manager_of_the_host(runtime: Runtime, directory: Path) -> None:
    """In one VM: by the variable of a command that ends, by that of one that stays, and by a mounted socket."""
    go = {"destination": "/go", "type": "bind", "source": f"{directory}/go", "options": ["bind"]}
    os.mkdir(f"{directory}/go")
    with Notified(f"{directory}/host.sock") as host:
        script = f"{STARTS}; until [ -e /go/on ]; do sleep 0.1; done; {IS_READY}; {RUNS}; while :; do sleep 9999; done"
        container = bundle(directory, "pod", script, mounts=[go])
        assert begin(runtime, host.address, "create", "--bundle", container, "pod").wait(patience(60)) == 0
        proxy = runtime.state("pod")["pid"]
        starting = begin(runtime, host.address, "start", "pod")
        assert host.next() == (proxy, ["STATUS=starting"])
        assert starting.poll() is None, "it waits until the container is ready"
        Path(directory, "go/on").write_text("")
        assert host.next() == (starting.pid, ["READY=1", "STATUS=up", f"MAINPID={proxy}"])
        assert host.next() == (starting.pid, ["BARRIER=1"])
        assert starting.wait(patience(10)) == 0
        assert host.next() == (proxy, ["WATCHDOG=1"])
        before = time.monotonic_ns() // 1000
        sender, [reloading, clock] = host.next()
        assert (sender, reloading) == (proxy, "RELOADING=1")
        assert before - patience(10) * 1e6 < int(clock.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000
        assert host.nothing()

        with Notified(f"@hawse-test-{os.getpid()}") as abstract:
            container = bundle(directory, "one", f"{IS_READY}; {ENDS}; exit 3")
            running = begin(runtime, abstract.address, "run", "--bundle", container, "one")
            assert abstract.next() == (running.pid, ["READY=1", "STATUS=up", f"MAINPID={running.pid}"])
            assert abstract.next() == (running.pid, ["STOPPING=1", "ERRNO=5"])
            assert running.wait(patience(20)) == 3

        # Podman mounts the directory of a socket (tests/engines/docker_cli/test_podman.py).
        with Notified(f"{directory}/engine.sock") as engine:
            mount = go | {"destination": "/run/the.sock", "source": engine.address}
            environment = ["PATH=/bin", "NOTIFY_SOCKET=/run/the.sock"]
            container = bundle(
                directory, "two", f"{IS_READY}; {ENDS}; while :; do sleep 9999; done", mounts=[mount], env=environment
            )
            runtime.run_detached(container, "two")
            proxy = runtime.state("two")["pid"]
            assert engine.next() == (proxy, ["READY=1", "STATUS=up"])
            assert engine.next() == (proxy, ["STOPPING=1", "ERRNO=5"])
        assert host.nothing()
        for name in ("two", "pod"):
            assert runtime("delete", "--force", name).code == 0


def test_start_ends_with_a_container_that_is_never_ready(runtime: Runtime, directory: Path) -> None:
    """Its root file system is read-only, but the directory of the socket is created in it."""
    container = bundle(directory, "pod", f"{STARTS}; read x; exit 4", readonly=True)
    with Notified(f"{directory}/host.sock") as host:
        assert begin(runtime, host.address, "run", "--detach", "--bundle", container, "pod").wait(patience(60)) == 0
        assert host.next()[1] == ["STATUS=starting"]
        assert host.nothing()
