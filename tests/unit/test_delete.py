"""`delete`: the containers that it accepts, the processes that it awaits, and that nothing remains."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hawse.commands.delete import _await_monitor, delete
from hawse.errors import NotFoundError, StateError, VmError
from hawse.state.store import CREATED, CREATING, PAUSED, RUNNING, STOPPED, Store
from tests.support.command import Command
from tests.support.fake_monitor import HANG_UP, FakeMonitor
from tests.support.patience import patience


@pytest.fixture
def hawse(tmp_path: Path) -> Command:
    return Command(str(tmp_path))


@pytest.fixture
def sandbox(hawse: Command) -> Iterator[FakeMonitor]:
    with FakeMonitor(hawse.store("pod")) as monitor:
        yield monitor


def joined(sandbox: FakeMonitor, name: str, **state: object) -> Store:
    """A container that has joined the sandbox; calls for it go to the sandbox's monitor."""
    store = Store(sandbox.store.root, name)
    store.make(sandbox=sandbox.store)
    store.write(sandbox.state | {"id": name, "status": STOPPED} | state)
    return store


@pytest.mark.parametrize("status", [CREATED, STOPPED])
def test_container_that_does_not_run_is_deleted(hawse: Command, status: str) -> None:
    with FakeMonitor(hawse.store("c1"), status=status) as monitor:
        done = hawse("delete", "c1")
    assert (done.code, done.errors) == (0, "")
    assert monitor.methods == ["delete"]
    assert os.listdir(hawse.root) == []


@pytest.mark.parametrize("status", [RUNNING, PAUSED, CREATING])
def test_container_that_runs_is_deleted_by_force(hawse: Command, status: str) -> None:
    with FakeMonitor(hawse.store("c1"), status=status) as monitor:
        refused = hawse("delete", "c1")
        assert refused.code == 1
        assert f"cannot delete container c1 that is not stopped: {status} [" in refused.errors
        assert monitor.calls == []
        assert hawse("delete", "--force", "c1").code == 0
    assert os.listdir(hawse.root) == []


@pytest.mark.parametrize("force", [False, True])
def test_missing_container_is_an_error_unless_forced(hawse: Command, force: bool) -> None:
    done = hawse("delete", *(["-f"] if force else []), "c1")
    assert (done.code, done.errors) == ((0, "") if force else (1, "hawse: container does not exist: c1\n"))


def test_container_whose_monitor_has_died_is_removed(hawse: Command) -> None:
    with FakeMonitor(hawse.store("c1")) as monitor:
        monitor.end()
        assert hawse("delete", "c1").code == 0
    assert monitor.calls == []
    assert os.listdir(hawse.root) == []


class Patient(Store):
    """A state directory whose monitor ends after its lock was checked a number of times."""

    looks = 0

    def __init__(self, monitor: FakeMonitor, name: str) -> None:
        super().__init__(monitor.store.root, name)
        self._monitor = monitor

    def monitor_lives(self) -> bool:
        self.looks += 1
        if self.looks == 10:
            self._monitor.end()
        return super().monitor_lives()


@pytest.mark.parametrize("answer", [HANG_UP, NotFoundError("no such container"), VmError("no answer"), None])
def test_end_of_a_monitor_is_awaited_whatever_it_answers(hawse: Command, answer: object) -> None:
    """The lock counts: the directory stays until the monitor has ended."""
    with FakeMonitor(hawse.store("c1"), {"delete": answer}, status=STOPPED) as monitor:
        store = Patient(monitor, "c1")
        assert delete(store, force=False) == []
        assert store.looks >= 10
    assert os.listdir(hawse.root) == []


@pytest.mark.parametrize(("status", "runs"), [(STOPPED, True), (CREATING, False)])
def test_poststop_hooks_run_after_the_deletion(hawse: Command, tmp_path: Path, status: str, runs: bool) -> None:
    """Hooks of a container that is being created belong to its creator. One that fails is a warning."""
    seen = tmp_path / "seen"
    script = f"ls {hawse.root} > {seen}; exit 4"
    hooks = {"poststop": [{"path": "/bin/sh", "args": ["sh", "-c", script]}], "poststart": [{"path": "/bin/false"}]}
    with FakeMonitor(hawse.store("c1"), status=status, hooks=hooks, bundle=str(tmp_path)):
        done = hawse("delete", "--force", "c1")
    assert done.code == 0
    warning = "hawse: warning: error running poststop hook #0: /bin/sh: exit code 4\n"
    assert done.errors == (warning if runs else "")
    assert seen.exists() is runs
    if runs:
        assert seen.read_text() == "", "the container still existed"


def test_joined_container_leaves_its_sandbox(hawse: Command, sandbox: FakeMonitor) -> None:
    sandbox.answers["delete"] = None
    joined(sandbox, "c1")
    assert hawse("delete", "c1").code == 0
    assert sandbox.calls == [("delete", {"container": "c1"})]
    assert os.listdir(hawse.root) == ["pod"]
    assert sandbox.store.monitor_lives()


def test_joined_container_that_its_sandbox_cannot_delete_stays(hawse: Command, sandbox: FakeMonitor) -> None:
    """The record of what remains in the VM is kept for the next deletion."""
    sandbox.answers["delete"] = VmError("its device is in use")
    store = joined(sandbox, "c1")
    done = hawse("delete", "c1")
    assert (done.code, done.errors) == (1, "hawse: its device is in use\n")
    assert os.path.exists(f"{store.path}/state.json")


def test_joined_container_that_is_unknown_to_its_sandbox_is_removed(hawse: Command, sandbox: FakeMonitor) -> None:
    sandbox.answers["delete"] = NotFoundError("container does not exist: c1")
    joined(sandbox, "c1")
    assert hawse("delete", "c1").code == 0
    assert os.listdir(hawse.root) == ["pod"]


@pytest.mark.parametrize("answer", [HANG_UP, VmError("the link broke")])
def test_joined_container_goes_with_a_sandbox_that_ends_meanwhile(
    hawse: Command, sandbox: FakeMonitor, answer: object
) -> None:
    joined(sandbox, "c1")

    def end(_params: object) -> object:
        sandbox.end()
        return answer

    sandbox.answers["delete"] = end
    assert hawse("delete", "c1").code == 0
    assert os.listdir(hawse.root) == ["pod"]


def test_joined_container_waits_for_a_sandbox_that_is_ending(sandbox: FakeMonitor) -> None:
    """The sandbox's monitor has stopped listening and still holds its lock, since it is releasing its resources."""
    joined(sandbox, "c1")
    sandbox.answers["delete"] = HANG_UP
    store = Patient(sandbox, "c1")
    assert delete(store, force=False) == []
    assert store.looks >= 10
    assert os.listdir(store.root) == ["pod"]


def test_directory_with_files_below_its_share_stays(hawse: Command) -> None:
    """Nothing below the share is removed recursively: it may be a file system of the host or the user."""
    store = hawse.store("c1")
    with FakeMonitor(store, status=STOPPED):
        os.makedirs(f"{store.path}/share/c1/rootfs")
        (Path(store.path) / "share/c1/rootfs/file").write_text("somebody's")
        done = hawse("delete", "c1")
    assert done.code == 1
    assert os.path.exists(f"{store.path}/share/c1/rootfs/file")


STUCK = """
import fcntl, os, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
fd = os.open(sys.argv[1], os.O_RDWR)
fcntl.flock(fd, fcntl.LOCK_EX)
print("locked", flush=True)
signal.pause()
"""


def test_monitor_that_does_not_end_is_killed(hawse: Command) -> None:
    """The kernel kills its children, including QEMU, with it."""
    with FakeMonitor(hawse.store("c1")) as monitor:
        monitor.end()
    lock = f"{monitor.store.path}/lock"
    with subprocess.Popen([sys.executable, "-IS", "-c", STUCK, lock], stdout=subprocess.PIPE) as stuck:
        assert stuck.stdout is not None
        assert stuck.stdout.readline() == b"locked\n"
        with pytest.raises(StateError, match="its monitor does not end, and its pid is unknown"):
            _await_monitor(monitor.store, 0, seconds=0)
        assert stuck.poll() is None
        _await_monitor(monitor.store, stuck.pid, seconds=0)
        assert stuck.wait(patience(10)) == -9
    assert not monitor.store.monitor_lives()


def test_monitor_that_ends_in_time_is_left_to_end(hawse: Command) -> None:
    """It is releasing devices: if it were killed, they would not be released."""
    with FakeMonitor(hawse.store("c1")) as monitor:
        monitor.end()
    program = STUCK.replace("signal.SIG_IGN", "lambda *_: sys.exit(5)")
    lock = f"{monitor.store.path}/lock"
    with subprocess.Popen([sys.executable, "-IS", "-c", program, lock], stdout=subprocess.PIPE) as ending:
        assert ending.stdout is not None
        assert ending.stdout.readline() == b"locked\n"

        class Watching(Store):
            looks = 0

            def monitor_lives(self) -> bool:
                self.looks += 1
                if self.looks == 3:
                    ending.terminate()
                return super().monitor_lives()

        _await_monitor(Watching(hawse.root, "c1"), ending.pid)
        assert ending.wait(patience(10)) == 5
