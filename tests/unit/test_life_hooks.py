"""Hooks on the host before a container's creation and after its end, with a fake QEMU without a VM."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import Done
from tests.support.ready import Sandboxes


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Sandboxes]:
    with Sandboxes(str(tmp_path)) as sandboxes:
        yield sandboxes


def write_hooks(host: Sandboxes, **scripts: str) -> Path:
    """Add hooks that run these commands. Returns the file in which each first records its name and the container's
    status."""
    log = Path(f"{host.directory}/hooks")
    log.touch()

    def hook(kind: str, script: str) -> dict[str, Any]:
        note = f'read -r state; status=${{state#*\\"status\\": \\"}}; echo {kind} ${{status%%\\"*}} >> {log}; {script}'
        return {"path": "/bin/sh", "args": ["sh", "-c", note], "env": ["PATH=/usr/bin:/bin"]}

    hooks = {kind: [hook(kind, script)] for kind, script in scripts.items()}
    host.program("wait", more=lambda spec: spec.update({"hooks": hooks}))
    return log


def test_hooks_run_in_order(host: Sandboxes) -> None:
    """createContainer hooks run in the mount namespace of the sandbox, the others in the host's."""
    note = f"readlink /proc/self/ns/mnt >> {host.directory}/mounts"
    log = write_hooks(host, createRuntime=note, createContainer=note, poststart=":", poststop=":")
    assert host.hawse("create", "--bundle", host.bundle, "c1") == Done(0, "", "")
    monitor = json.loads(Path(f"{host.hawse.root}/c1/state.json").read_text())["monitorPid"]
    mounts = Path(f"{host.directory}/mounts").read_text().split()
    assert mounts == [os.readlink("/proc/self/ns/mnt"), os.readlink(f"/proc/{monitor}/ns/mnt")]
    assert host.hawse("start", "c1") == Done(0, "", "")
    assert host.hawse("delete", "-f", "c1") == Done(0, "", "")
    assert log.read_text().splitlines() == [
        "createRuntime creating", "createContainer creating", "poststart running", "poststop stopped",
    ]  # fmt: skip


def test_failed_hook_undoes_the_creation(host: Sandboxes) -> None:
    """Then the poststop hooks run, and their failures are added to the error."""
    log = write_hooks(host, createRuntime="exit 3", createContainer=":", poststop="exit 4")
    done = host.hawse("create", "--bundle", host.bundle, "c1")
    assert done.code == 1
    assert done.errors == (
        "hawse: error running createRuntime hook #0: /bin/sh: exit code 3; "
        "and then error running poststop hook #0: /bin/sh: exit code 4\n"
    )
    assert log.read_text().splitlines() == ["createRuntime creating", "poststop stopped"]
    assert host.names() == []


def test_no_hook_runs_if_the_creation_fails_before_the_hooks(host: Sandboxes) -> None:
    log = write_hooks(host, createRuntime=":", poststop=":")
    Path(host.qemu).unlink()
    assert host.hawse("create", "--bundle", host.bundle, "c1").code == 1
    assert log.read_text() == ""
    assert host.names() == []


def test_vm_that_dies_before_the_hooks_is_reported(host: Sandboxes) -> None:
    log = write_hooks(host, createRuntime=":")
    Path(host.qemu).write_text('#!/bin/sh\ncase $* in *stdio*) cat "$0.json";; *) echo broken >&2; exit 1;; esac\n')
    done = host.hawse("create", "--bundle", host.bundle, "c1")
    assert (done.code, "  | broken" in done.errors) == (1, True)
    assert log.read_text() == ""
    assert host.names() == []
