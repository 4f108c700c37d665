"""Nodes and files made in a container that runs, which is hostile ground."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from hawse.agent.devices.live_nodes import bind_node, make_node, remove_node, write_file
from hawse.agent.system import syscalls
from hawse.errors import StateError
from tests.support.patience import wait_until

NULL, ZERO = (1, 3), (1, 5)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root" / "dev").mkdir(parents=True)
    return tmp_path / "root"


def test_a_node_has_its_numbers_its_mode_and_its_owners(root: Path) -> None:
    make_node(str(root), "/dev/vfio/5", NULL, mode=0o640, uid=1000, gid=1001)
    found = (root / "dev" / "vfio" / "5").stat()
    assert stat.S_ISCHR(found.st_mode)
    assert (found.st_rdev, stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (
        os.makedev(*NULL), 0o640, 1000, 1001,
    )  # fmt: skip


def test_a_node_that_is_there_is_left_as_it_is(root: Path) -> None:
    make_node(str(root), "/dev/vfio/vfio", NULL, mode=0o600, uid=7, gid=7)
    make_node(str(root), "/dev/vfio/vfio", NULL, mode=0o666, uid=0, gid=0)
    assert (root / "dev" / "vfio" / "vfio").stat().st_uid == 7


@pytest.mark.parametrize("other", ["file", "link", "device"])
def test_something_else_in_the_way_is_not_touched(root: Path, other: str) -> None:
    (root / "dev" / "vfio").mkdir()
    path = root / "dev" / "vfio" / "5"
    if other == "file":
        path.write_text("mine")
    elif other == "link":
        path.symlink_to("/dev/null")
    else:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(*ZERO))
    before = path.lstat()
    with pytest.raises(StateError, match="/dev/vfio/5: another file exists at this path in the container"):
        make_node(str(root), "/dev/vfio/5", NULL, mode=0o666, uid=0, gid=0)
    remove_node(str(root), "/dev/vfio/5", NULL)
    after = path.lstat()
    assert (after.st_ino, after.st_mode, after.st_rdev) == (before.st_ino, before.st_mode, before.st_rdev)


@pytest.mark.parametrize("target", ["/outside", "../../outside", "."])
def test_no_link_leads_out_of_the_container(root: Path, tmp_path: Path, target: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    link = root / "dev" / "vfio"
    link.symlink_to(str(outside) if target == "/outside" else target)
    with pytest.raises(StateError, match="the directory vfio cannot be opened in the container"):
        make_node(str(root), "/dev/vfio/5", NULL, mode=0o666, uid=0, gid=0)
    with pytest.raises(StateError, match="the directory vfio cannot be opened in the container"):
        write_file(str(root), "/dev/vfio/map", "text")
    remove_node(str(root), "/dev/vfio/5", NULL)
    assert list(outside.iterdir()) == []


def test_a_file_is_replaced_and_a_link_in_its_place_too(root: Path, tmp_path: Path) -> None:
    write_file(str(root), "/dev/hawse/devices.json", "one")
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    (root / "dev" / "hawse" / "devices.json").unlink()
    (root / "dev" / "hawse" / "devices.json").symlink_to(victim)
    write_file(str(root), "/dev/hawse/devices.json", "two")
    assert (root / "dev" / "hawse" / "devices.json").read_text() == "two"
    assert victim.read_text() == "untouched"


def test_removing_what_is_gone_is_no_error(root: Path) -> None:
    remove_node(str(root), "/dev/vfio/5", NULL)
    make_node(str(root), "/dev/vfio/5", NULL, mode=0o666, uid=0, gid=0)
    remove_node(str(root), "/dev/vfio/5", NULL)
    assert list((root / "dev" / "vfio").iterdir()) == []


def test_a_node_is_made_without_opening_its_device(root: Path) -> None:
    """To open it is for the container: a group can be opened once, and here there is no such device."""
    make_node(str(root), "/dev/vfio/5", (4095, 1), mode=0o640, uid=7, gid=8)
    found = (root / "dev/vfio/5").stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o640, 7, 8)


def test_a_file_in_the_place_of_a_directory_is_named(root: Path) -> None:
    (root / "dev/vfio").write_text("")
    with pytest.raises(StateError, match=r"^/dev/vfio/5: the directory vfio cannot be opened in the container: Not a "):
        make_node(str(root), "/dev/vfio/5", NULL, mode=0o666, uid=0, gid=0)


def test_nothing_is_made_for_a_node_that_is_removed(root: Path) -> None:
    remove_node(str(root), "/dev/vfio/devices/vfio0", NULL)
    assert list((root / "dev").iterdir()) == []


def test_a_directory_is_not_replaced_by_a_file(root: Path) -> None:
    (root / "dev/hawse/devices.json").mkdir(parents=True)
    with pytest.raises(StateError, match=r"^/dev/hawse/devices\.json: the file cannot be created in the container: "):
        write_file(str(root), "/dev/hawse/devices.json", "text")


def test_node_that_is_bound_has_an_empty_file_as_its_place(root: Path) -> None:
    places = []
    bind_node(str(root), "/dev/vfio/5", NULL, lambda place: places.append(os.fstat(place).st_ino))
    assert [(root / "dev" / "vfio" / "5").stat().st_ino] == places
    make_node(str(root), "/dev/vfio/6", NULL, mode=0o600, uid=0, gid=0)
    bind_node(str(root), "/dev/vfio/6", NULL, lambda _place: pytest.fail("one that is there is left"))


def test_bind_that_fails_leaves_nothing(root: Path) -> None:
    def refuse(_place: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    with pytest.raises(StateError, match="/dev/vfio/5: the node cannot be bound in the container: Operation not"):
        bind_node(str(root), "/dev/vfio/5", NULL, refuse)
    assert os.listdir(root / "dev" / "vfio") == []
    (root / "dev" / "vfio" / "5").write_text("mine")
    with pytest.raises(StateError, match="another file exists at this path"):
        bind_node(str(root), "/dev/vfio/5", NULL, lambda _place: None)


def test_bind_in_another_mount_namespace_is_seen_there_alone(root: Path) -> None:
    make_node(str(root), "/dev/source", NULL, mode=0o640, uid=7, gid=8)
    with subprocess.Popen(["unshare", "--mount", "--propagation", "private", "sleep", "60"]) as other:
        try:
            wait_until(lambda: Path(f"/proc/{other.pid}/comm").read_text() == "sleep\n")
            namespace = os.open(f"/proc/{other.pid}/ns/mnt", os.O_RDONLY)
            there = f"/proc/{other.pid}/root{root}"
            bind_node(
                there, "/dev/vfio/5", NULL, lambda place: syscalls.bind_in(namespace, f"{root}/dev/source", place)
            )
            os.close(namespace)
            assert stat.S_ISCHR(os.stat(f"{there}/dev/vfio/5").st_mode)
            assert stat.S_ISREG((root / "dev" / "vfio" / "5").stat().st_mode)
            remove_node(there, "/dev/vfio/5", NULL)
            assert not os.path.exists(f"{there}/dev/vfio/5")
            assert "vfio/5" not in Path(f"/proc/{other.pid}/mountinfo").read_text()
        finally:
            other.kill()


def test_files_made_as_another_owner_are_that_owners(root: Path) -> None:
    (root / "dev").chmod(0o777)
    directory = os.open(root, os.O_RDONLY)  # as the agent has it: nothing above it is looked at
    with syscalls.file_owner(1000, 1001):
        write_file(f"/proc/self/fd/{directory}", "/dev/theirs", "text")
    os.close(directory)
    write_file(str(root), "/dev/ours", "text")
    owners = [((root / "dev" / name).stat().st_uid, (root / "dev" / name).stat().st_gid) for name in ("theirs", "ours")]
    assert owners == [(1000, 1001), (0, 0)]
