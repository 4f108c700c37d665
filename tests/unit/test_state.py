"""The state on disk: it is written atomically, read with the present status, and removed without following mounts."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from hawse.cli.runc.kill import parse_signal
from hawse.errors import NotFoundError, StateError, UsageError, VmError
from hawse.state.store import CREATED, RUNNING, STOPPED, Store, alive, public, start_time


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path / "root"), "c1")
    store.make()
    return store


def state(**changes: Any) -> dict[str, Any]:
    mine = os.getpid()
    return {"id": "c1", "pid": mine, "pidStart": start_time(mine), "status": RUNNING, "annotations": {}} | changes


def test_directory_is_only_accessible_to_root(store: Store) -> None:
    assert os.stat(store.path).st_mode & 0o777 == 0o700


def test_id_is_claimed_only_once(store: Store) -> None:
    with pytest.raises(StateError, match="container with given ID already exists: c1"):
        store.make()


@pytest.mark.parametrize(
    ("changes", "locked", "status", "has_pid"),
    [
        ({}, True, RUNNING, True),
        ({"status": CREATED}, True, CREATED, True),
        ({"pidStart": 1}, True, STOPPED, False),  # the pid belongs to another process now
        ({"pid": 2**22 + 5}, True, STOPPED, False),
        ({}, False, STOPPED, False),  # without a monitor
        ({"status": STOPPED}, True, STOPPED, False),
    ],
)
def test_state_is_read_with_its_present_status(
    store: Store, changes: dict[str, Any], locked: bool, status: str, has_pid: bool
) -> None:
    lock = store.lock() if locked else -1
    store.write(state(**changes))
    read = store.read()
    assert read["status"] == status
    assert bool(read["pid"]) is has_pid
    if locked:
        os.close(lock)


def test_container_of_a_killed_create_is_stopped(store: Store) -> None:
    assert store.read()["status"] == STOPPED


@pytest.mark.parametrize("text", ['{"id": "c1", "init_process_pid": 7}', "[]", "null", "not JSON"])
def test_state_of_another_runtime_is_not_a_container(store: Store, text: str) -> None:
    """containerd uses one root directory for all runtimes of a namespace."""
    with open(f"{store.path}/state.json", "w") as file:
        file.write(text)
    with pytest.raises(NotFoundError, match=r"container does not exist: c1: .* belongs to another runtime"):
        store.read()


def test_missing_container_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="container does not exist: c2"):
        Store(str(tmp_path), "c2").read()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "a\n", "\u00fc", "x" * 256])
def test_invalid_ids_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="invalid container ID format"):
        Store(str(tmp_path), name)


def test_state_has_the_keys_of_runc_in_the_same_order() -> None:
    full = state(ociVersion="1.0.2", bundle="/b", rootfs="/r", created="now", owner="root")
    assert list(public(full)) == ["ociVersion", "id", "pid", "status", "bundle", "rootfs", "created", "owner"]
    assert public(full | {"annotations": {"a": "b"}})["annotations"] == {"a": "b"}


def test_state_shows_why_the_vm_ended() -> None:
    failure = VmError("QEMU was killed by signal 9", hint="look at the log").to_wire()
    assert public({"id": "c1", "failure": failure}) == {
        "id": "c1",
        "failure": "QEMU was killed by signal 9 [look at the log]",
    }


def test_container_is_removed_with_the_empty_directory_of_its_share(store: Store) -> None:
    os.mkdir(f"{store.path}/share")
    store.remove()
    assert not os.path.exists(store.path)
    Store(store.root, "gone").remove()


@pytest.mark.parametrize("late", ["overlays.lock", "other"])
def test_file_that_is_made_during_the_removal_is_removed(
    store: Store, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    """A container that joins makes overlays.lock in the sandbox's directory at any moment."""
    real = os.rmdir
    calls: list[str] = []

    def rmdir(path: str) -> None:
        if path == store.path and (not calls or late == "other"):
            Path(path, late).touch()
        calls.append(path)
        real(path)

    monkeypatch.setattr(os, "rmdir", rmdir)
    if late == "other":  # one that comes again and again
        with pytest.raises(StateError, match=f"container {store.name}: {store.path} cannot be removed"):
            store.remove()
    else:
        store.remove()
        assert not os.path.exists(store.path)


@pytest.mark.parametrize("number", [float("inf"), float("nan")])
def test_state_that_could_not_be_read_is_not_written(store: Store, number: float) -> None:
    store.write({"status": "running"})
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.write({"status": number})
    assert Path(store.path, "state.json").read_text() == '{\n  "status": "running"\n}'


def plant(kind: str, path: str, target: str) -> None:
    """Files that a guest could have left in a share that it can write to."""
    if kind == "link":
        os.symlink(target, path)
    elif kind == "FIFO":
        os.mkfifo(path)
    elif kind == "node":
        os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    elif kind == "directory":
        os.mkdir(path)
    else:
        Path(path).write_text("data" if kind == "file" else "")


@pytest.mark.parametrize("kind", ["link", "FIFO", "node", "directory", "file", "empty file"])
@pytest.mark.parametrize("place", ["share/it", "share/c1/it"])
def test_files_below_the_share_are_neither_followed_nor_deleted(
    store: Store, tmp_path: Path, kind: str, place: str
) -> None:
    """The share of an earlier version was on the host's own file system, and a guest could write to it."""
    outside = tmp_path / "outside"
    (outside / "empty").mkdir(parents=True)
    (outside / "file").touch()
    os.makedirs(f"{store.path}/share/c1")
    store.write(state())
    plant(kind, f"{store.path}/{place}", str(outside))
    with pytest.raises(StateError, match=f"container c1: {store.path}/share cannot be removed: Directory not empty"):
        store.remove()
    assert os.path.exists(f"{store.path}/state.json"), "it can be tried again"
    assert sorted(os.listdir(outside)) == ["empty", "file"]
    assert os.path.lexists(f"{store.path}/{place}")


def test_share_that_is_a_symlink_is_not_followed(store: Store, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    os.symlink(tmp_path / "outside", f"{store.path}/share")
    with pytest.raises(StateError, match="share cannot be removed: Not a directory"):
        store.remove()
    assert (tmp_path / "outside").is_dir()


def test_process_is_identified_by_pid_and_start_time() -> None:
    mine = os.getpid()
    assert alive(mine, start_time(mine))
    assert not alive(mine, start_time(mine) + 1)
    assert not alive(0, 0)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("9", 9), ("KILL", 9), ("SIGTERM", 15), ("sigusr1", 10), ("34", 34), ("0", 0), ("SIGRTMIN+3", 37),
        ("rtmax-1", 63), ("SIGRTMAX", 64),
    ],
)  # fmt: skip
def test_signals(text: str, number: int) -> None:
    assert parse_signal(text) == number


@pytest.mark.parametrize(
    "text", ["65", "-9", "SIGNOTHING", "", "9x", "\u0669", "RTMIN+31", "RTMIN-1", "RTMIN+", "INT+1"]
)
def test_invalid_signals_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="unknown signal"):
        parse_signal(text)


def test_lock_is_held_by_one_monitor_and_visible_to_others(store: Store) -> None:
    assert not store.monitor_lives(), "no monitor exists yet"
    lock = store.lock()
    assert store.monitor_lives()
    with pytest.raises(BlockingIOError):
        store.lock()
    os.close(lock)
    assert not store.monitor_lives()


def test_joined_container_has_the_monitor_of_its_sandbox(store: Store) -> None:
    joined = Store(store.root, "c2")
    joined.make(sandbox=store)
    assert (joined.has_joined, store.has_joined) == (True, False)
    lock = store.lock()
    assert joined.monitor_lives()
    os.close(lock)
    joined.remove()
    assert os.path.exists(f"{store.path}/lock"), "the links are removed, and not their targets"


def test_state_directory_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    (tmp_path / "root").touch()
    store = Store(f"{tmp_path}/root/below", "c1")
    with pytest.raises(StateError, match=r"cannot create the state directory .*/root/below/c1: Not a directory"):
        store.make()
    with pytest.raises(NotFoundError, match="container does not exist: c1"):
        store.read()


@pytest.mark.parametrize(
    ("status", "alive_pid", "expected"),
    [
        ("creating", False, "creating"), ("created", True, "created"), ("created", False, STOPPED),
        ("running", False, STOPPED), ("paused", True, "paused"), ("paused", False, STOPPED), (STOPPED, True, STOPPED),
    ],
)  # fmt: skip
def test_container_whose_first_process_has_ended_is_stopped(
    store: Store, status: str, alive_pid: bool, expected: str
) -> None:
    """Before its creation a container has no process."""
    lock = store.lock()
    store.write(state(status=status) if alive_pid else state(status=status, pid=2**22 + 5))
    read = store.read()
    os.close(lock)
    assert read["status"] == expected
    assert (read["pid"] == 0) is (expected == STOPPED)


def test_reader_sees_either_the_old_or_the_new_state(store: Store) -> None:
    store.write(state())
    with open(f"{store.path}/state.json") as old:
        store.write(state(status=STOPPED))
        assert '"running"' in old.read()
    assert os.listdir(store.path) == ["state.json"]


def test_ended_process_has_no_start_time() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert start_time(child) == 0, "a zombie does not run"
    os.waitpid(child, 0)
    assert start_time(child) == 0
    assert start_time(os.getpid()) > 0
    assert not alive(child, 0)
