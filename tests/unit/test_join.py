"""A container that joins a sandbox: the calls of the sandbox's monitor, and the undoing if it refuses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from hawse.errors import VmError
from hawse.host import network_namespace, redirects
from hawse.plan.capacity import Room
from tests.support.command import Done
from tests.support.fake_monitor import FakeMonitor
from tests.support.netns import Namespace
from tests.support.proxies import Attached
from tests.support.ready import JOINS, Sandboxes, annotated


@pytest.fixture
def host(tmp_path: Path) -> Sandboxes:
    sandboxes = Sandboxes(str(tmp_path))
    sandboxes.program("wait", more=annotated(JOINS))
    return sandboxes


@pytest.fixture
def sandbox(host: Sandboxes) -> Iterator[FakeMonitor]:
    with FakeMonitor(host.hawse.store("pod"), {"room": msgspec.to_builtins(Room(spares=[]))}) as monitor:
        yield monitor


def test_monitor_creates_the_container_and_its_notes_are_printed(host: Sandboxes, sandbox: FakeMonitor) -> None:
    sandbox.answers["create"] = [["warning", "slow"], ["debug", "fast"]]
    done = host.hawse("create", "--bundle", host.bundle, "--pid-file", f"{host.directory}/pid", "c1")
    assert done == Done(0, "", "hawse: warning: slow\n")
    assert sandbox.methods == ["room", "create"]
    params = sandbox.calls[1][1]
    assert (params["container"], params["plan"]["id"], len(params["sources"])) == ("c1", "c1", 1)
    with Attached(sandbox) as process:
        assert process.params["key"] == f"c1/{params['key']}"
        process.exit(3)
    os.waitpid(int(Path(f"{host.directory}/pid").read_text()), 0)


def test_refused_container_leaves_neither_proxy_nor_directory(host: Sandboxes, sandbox: FakeMonitor) -> None:
    proxies: list[Attached] = []

    def refuse(_params: object) -> VmError:
        proxies.append(Attached(sandbox))
        return VmError("the guest has no room")

    sandbox.answers["create"] = refuse
    descriptors = len(os.listdir("/proc/self/fd"))
    done = host.hawse("create", "--bundle", host.bundle, "c1")
    assert done == Done(1, "", "hawse: the guest has no room\n")
    with proxies[0] as process:
        process.await_end()
    assert host.names() == ["pod"]
    assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.mark.parametrize("same", [False, True])
def test_network_must_be_that_of_the_sandbox(host: Sandboxes, sandbox: FakeMonitor, same: bool) -> None:
    with Namespace() as theirs, Namespace() as another:
        entry = {"inode": os.fstat(theirs.fd).st_ino, "cookie": network_namespace.cookie(theirs.fd)}
        redirects.note(redirects.record(sandbox.store.path), entry)
        path = theirs.path if same else another.path

        def change(spec: dict[str, object]) -> None:
            annotated(JOINS)(spec)
            kinds: list[dict[str, str]] = [{"type": "mount"}, {"type": "uts"}, {"type": "network", "path": path}]
            spec["linux"] = {"namespaces": kinds}

        host.program("wait", more=change)
        sandbox.answers["create"] = VmError("as far as the monitor")
        done = host.hawse("create", "--bundle", host.bundle, "c1")
        if same:
            assert done.errors == "hawse: as far as the monitor\n"
        else:
            assert f"{path}: not the network of sandbox pod, which the container joins" in done.errors
        os.unlink(redirects.record(sandbox.store.path))
    assert host.names() == ["pod"]
