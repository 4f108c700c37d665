"""Containers that join a sandbox at the same moment with the same overlay, with a fake QEMU without a VM."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hawse.errors import StateError
from hawse.host.mounts import overlays
from hawse.linux import mounts as linux
from tests.support.forked import in_child
from tests.support.ready import CRI, JOINS, Sandboxes, annotated
from tests.support.shares import in_namespace

NAMES = ["c1", "c2", "c3"]


def mounted(monitor: int) -> list[str]:
    """The mount points of overlays in the share of a monitor."""
    table = Path(f"/proc/{monitor}/mountinfo").read_text()
    return re.findall(r"/share/(\S+) .* - overlay ", table)


OVERLAY = {
    "destination": "/data", "type": "overlay", "source": "overlay",
    "options": ["lowerdir=/mnt/lower", "upperdir=/mnt/upper", "workdir=/mnt/work"],
}  # fmt: skip


def begin(host: Sandboxes, hook: dict[str, Any]) -> None:
    """Create the pod; containers that join it from here on have the overlay and a hook before they are created."""
    host.program("wait", more=annotated(CRI))
    assert host.hawse("create", "--bundle", host.bundle, "pod").code == 0

    def joining(spec: dict[str, Any]) -> None:
        annotated(JOINS)(spec)
        spec["hooks"] = {"createRuntime": [hook]}
        spec["mounts"].append(OVERLAY)

    host.program("wait", more=joining)


def make_layers() -> None:
    linux.mount("test", "/mnt", "tmpfs", 0)  # an upper layer may not be on an overlay, as this machine's files may
    for name in ("lower", "upper", "work", "host"):
        os.mkdir(f"/mnt/{name}")


def test_overlay_of_containers_that_join_at_the_same_moment_is_mounted_once() -> None:
    """Two mounts of one upper directory are undefined behaviour of the kernel."""

    def act() -> Any:
        make_layers()
        with Sandboxes("/mnt/host") as host:
            begin(host, {"path": "/bin/sleep", "args": ["sleep", "0.3"]})
            words = [sys.executable, "-m", "hawse", "--root", host.hawse.root, "--config", host.hawse.config]
            words += ["create", "--bundle", host.bundle]
            creations = []
            for name in NAMES:
                with open(f"/mnt/{name}", "w") as said:  # not a pipe, which the container's process would keep open
                    creations.append(subprocess.Popen([*words, name], stdout=said, stderr=said))
            codes = [creation.wait() for creation in creations]
            errors = [Path(f"/mnt/{name}").read_text() for name in NAMES]
            monitor = int(host.hawse.store("pod").read()["monitorPid"])
            counts = [len(mounted(monitor))]
            for name in NAMES:
                host.hawse("delete", "--force", name)
                counts.append(len(mounted(monitor)))
            return codes, errors, counts

    assert in_namespace(act) == [[0, 0, 0], ["", "", ""], [1, 1, 1, 0]]


def test_hook_runs_without_the_lock_of_overlays() -> None:
    """One that hangs would keep every other container from joining, and one that creates a container would wait for
    itself."""

    def act() -> Any:
        make_layers()
        with Sandboxes("/mnt/host") as host:
            lock = f"{host.hawse.store('pod').path}/overlays.lock"
            begin(host, {"path": "/usr/bin/flock", "args": ["flock", "--nonblock", lock, "true"]})
            done = host.hawse("create", "--bundle", host.bundle, "c1")
            return done.code, done.errors

    assert in_namespace(act) == [0, ""]


def test_lock_that_one_container_keeps_is_an_error_that_names_it(tmp_path: Path) -> None:
    with (
        overlays.alone(str(tmp_path), "c1"),
        pytest.raises(StateError, match=r"container c2: container c1 of the same pod .* for 0\.1 s") as caught,
        overlays.alone(str(tmp_path), "c2", seconds=0.1),
    ):
        pass
    assert "`hawse delete --force c1`" in caught.value.hint
    with overlays.alone(str(tmp_path), "c2", seconds=0):
        assert (tmp_path / "overlays.lock").read_text() == "c2"


def test_sandbox_that_is_deleted_while_a_container_joins_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(StateError, match="container not running: pod was deleted while c1 was to join it"),
        overlays.alone(str(tmp_path / "pod"), "c1"),
    ):
        pass


def test_lock_ends_with_the_process_that_has_it(tmp_path: Path) -> None:
    def take() -> bool:
        overlays.alone(str(tmp_path), "c1").__enter__()
        return True

    for _ in range(2):
        assert in_child(take)
