"""User ids of confined QEMUs: two sandboxes never share one, and it is released however the monitor ends."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from hawse.errors import HostError
from hawse.jail import users

FIRST, LAST = 100000, 100003


def take_in_child(path: str, name: str, first: int = FIRST, last: int = LAST) -> tuple[int, int]:
    """A process that reserves an id, and the id; 0 if it failed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            held = users.take(first, last, name=name, path=path)
            os.write(writing, str(held.user).encode())
        except HostError:
            os.write(writing, b"0")
        signal.pause()
        os._exit(0)
    os.close(writing)
    user = int(os.read(reading, 64))
    os.close(reading)
    return child, user


def end(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_each_sandbox_has_its_own_id_which_is_released_when_it_is_killed(tmp_path: Path) -> None:
    path = f"{tmp_path}/users"
    holders = [take_in_child(path, name) for name in ("a", "a", "b", "c")]
    try:
        assert sorted(user for _, user in holders) == [FIRST, FIRST + 1, FIRST + 2, LAST]
        with pytest.raises(HostError, match=f"all from {FIRST} to {LAST} are in use") as caught:
            users.take(FIRST, LAST, name="d", path=path)
        assert caught.value.hint == "enlarge the range vm.users"
        child, user = holders.pop()
        end(child)
        held = users.take(FIRST, LAST, name="d", path=path)
        assert held.user == user
        held.close()
    finally:
        for child, _ in holders:
            end(child)
    assert os.stat(path).st_size == 0
    assert os.stat(path).st_mode & 0o777 == 0o600


def test_search_begins_at_an_id_that_depends_on_the_name(tmp_path: Path) -> None:
    path = f"{tmp_path}/users"
    ids = []
    for name in ("a", "b", "c", "a"):
        held = users.take(0, 10**6, name=name, path=path)
        ids.append(held.user)
        held.close()
    assert ids[0] == ids[3]
    assert len(set(ids)) == 3


def test_lock_file_that_is_a_symlink_is_refused(tmp_path: Path) -> None:
    (tmp_path / "users").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(
        HostError, match=r"cannot reserve a user id for QEMU: .*users: Too many levels of symbolic links"
    ):
        users.take(FIRST, LAST, name="a", path=f"{tmp_path}/users")
    assert not (tmp_path / "elsewhere").exists()


def test_overlapping_ranges_never_share_an_id(tmp_path: Path) -> None:
    """For example after a change of vm.users, or with two configurations on one host."""
    path = f"{tmp_path}/users"
    child, user = take_in_child(path, "a", LAST, LAST)
    try:
        assert user == LAST
        with pytest.raises(HostError):
            users.take(LAST, LAST, name="b", path=path)
        held = users.take(FIRST, LAST, name="b", path=path)
        assert held.user != LAST
        held.close()
    finally:
        end(child)
