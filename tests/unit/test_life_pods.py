"""Containers that join a sandbox whose VM runs already, with a fake QEMU without a VM."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hawse.state.store import CREATED, CREATING, PAUSED, STOPPED
from tests.support.command import Done
from tests.support.fake_monitor import FakeMonitor
from tests.support.ready import CRI, JOINS, Sandboxes, annotated


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Sandboxes]:
    with Sandboxes(str(tmp_path)) as sandboxes:
        yield sandboxes


def test_containers_join_a_sandbox_and_are_deleted(host: Sandboxes) -> None:
    """The failure or the end of a container does not affect the sandbox."""
    host.program("wait", more=annotated(CRI))
    assert host.hawse("create", "--bundle", host.bundle, "pod") == Done(0, "", "")
    hook = {
        "path": "/bin/sh",
        "args": ["sh", "-c", f"echo hook >> {host.directory}/log; exit $(cat {host.directory}/code)"],
    }
    Path(f"{host.directory}/code").write_text("0")

    def joining(spec: dict[str, object]) -> None:
        annotated(JOINS)(spec)
        spec["hooks"] = {"createRuntime": [hook], "poststop": [hook]}

    host.program("exit", "5", more=joining)
    assert host.hawse("run", "--bundle", host.bundle, "c1").code == 5
    assert host.names() == ["pod"]
    assert Path(f"{host.directory}/log").read_text() == "hook\nhook\n"

    Path(f"{host.directory}/code").write_text("6")
    done = host.hawse("create", "--bundle", host.bundle, "c1")
    assert done.errors.startswith("hawse: error running createRuntime hook #0: /bin/sh: exit code 6; and then error ")
    assert host.names() == ["pod"]

    done = host.hawse("create", "--bundle", host.bundle, "--console-socket", "/s", "c1")
    assert "cannot use console socket" in done.errors
    assert host.names() == ["pod"]
    assert host.state("pod")["status"] == CREATED

    host.program("wait", more=annotated(JOINS))
    assert host.hawse("create", "--bundle", host.bundle, "c1") == Done(0, "", "")
    host.program("wait", more=annotated(JOINS | {"io.kubernetes.cri.sandbox-id": "c1"}))
    done = host.hawse("create", "--bundle", host.bundle, "c2")
    assert "c1 is not a sandbox: it has joined pod [name the sandbox itself]" in done.errors
    assert host.names() == ["c1", "pod"]


def test_sandbox_must_exist(host: Sandboxes) -> None:
    host.program("exit", "5", more=annotated(JOINS))
    done = host.hawse("create", "--bundle", host.bundle, "c1")
    assert (done.code, "sandbox pod does not exist" in done.errors) == (1, True)
    assert host.names() == []


@pytest.mark.parametrize("status", [CREATING, PAUSED, STOPPED])
def test_sandbox_must_be_created_or_running(host: Sandboxes, status: str) -> None:
    host.program("exit", "5", more=annotated(JOINS))
    with FakeMonitor(host.hawse.store("pod"), status=status) as monitor:
        done = host.hawse("create", "--bundle", host.bundle, "c1")
        assert f"sandbox pod is {status}: no container can join it" in done.errors
        assert monitor.calls == []
        assert host.names() == ["pod"]
