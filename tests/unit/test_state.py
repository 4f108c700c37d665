"""The state on disk: written whole, read as it is now, removed without touching what a mount may show."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from hawse.cli.kill import parse_signal
from hawse.errors import NotFoundError, StateError, UsageError
from hawse.sandbox.state import CREATED, RUNNING, STOPPED, Store, alive, public, start_time


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(str(tmp_path / "root"), "c1")
    made.make()
    return made


def state(**changes: Any) -> dict[str, Any]:
    mine = os.getpid()
    return {"id": "c1", "pid": mine, "pidStart": start_time(mine), "status": RUNNING, "annotations": {}} | changes


def test_the_directory_is_for_root_alone(store: Store) -> None:
    assert os.stat(store.path).st_mode & 0o777 == 0o700


def test_an_id_is_claimed_once(store: Store) -> None:
    with pytest.raises(StateError, match="container with given ID already exists: c1"):
        store.make()


@pytest.mark.parametrize(
    ("changes", "locked", "status", "has_pid"),
    [
        ({}, True, RUNNING, True),
        ({"status": CREATED}, True, CREATED, True),
        ({"pidStart": 1}, True, STOPPED, False),  # the number is another process's now
        ({"pid": 2**22 + 5}, True, STOPPED, False),
        ({}, False, STOPPED, False),  # no monitor
        ({"status": STOPPED}, True, STOPPED, False),
    ],
)
def test_it_is_read_as_it_is_now(
    store: Store, changes: dict[str, Any], locked: bool, status: str, has_pid: bool
) -> None:
    lock = store.lock() if locked else -1
    store.write(state(**changes))
    read = store.read()
    assert read["status"] == status
    assert bool(read["pid"]) is has_pid
    if locked:
        os.close(lock)


def test_a_create_that_was_killed_at_once_is_stopped(store: Store) -> None:
    assert store.read()["status"] == STOPPED


def test_there_is_no_such_container(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="container does not exist: c2"):
        Store(str(tmp_path), "c2").read()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "a\n", "\u00fc", "x" * 256])
def test_ids_that_are_none(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="invalid container ID format"):
        Store(str(tmp_path), name)


def test_runc_s_keys_in_runc_s_order() -> None:
    full = state(ociVersion="1.0.2", bundle="/b", rootfs="/r", created="now", owner="root")
    assert list(public(full)) == ["ociVersion", "id", "pid", "status", "bundle", "rootfs", "created", "owner"]
    assert public(full | {"annotations": {"a": "b"}})["annotations"] == {"a": "b"}


def test_nothing_below_the_share_is_deleted_but_empty_mount_points(store: Store) -> None:
    os.makedirs(f"{store.path}/share/c1/rootfs")
    Path(f"{store.path}/share/c1/mount0").write_text("")
    store.remove()
    assert not os.path.exists(store.path)


def test_a_share_that_is_not_empty_stops_the_removal(store: Store) -> None:
    os.makedirs(f"{store.path}/share/c1/rootfs")
    kept = Path(f"{store.path}/share/c1/rootfs/data")
    kept.write_text("somebody's")
    with pytest.raises(OSError, match="not empty"):
        store.remove()
    assert kept.read_text() == "somebody's"


def test_a_process_is_its_pid_and_its_start() -> None:
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
def test_signals_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="unknown signal"):
        parse_signal(text)
