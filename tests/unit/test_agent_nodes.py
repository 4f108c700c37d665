"""Nodes and files made in a container that runs, which is hostile ground."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from hawse.agent.nodes import make_node, remove_node, write_file
from hawse.errors import StateError

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
    with pytest.raises(StateError, match="/dev/vfio/5: something else is there in the container"):
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
    with pytest.raises(StateError, match="vfio cannot be entered in the container"):
        make_node(str(root), "/dev/vfio/5", NULL, mode=0o666, uid=0, gid=0)
    with pytest.raises(StateError, match="vfio cannot be entered in the container"):
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
    with pytest.raises(StateError, match=r"^/dev/vfio/5: vfio cannot be entered in the container: Not a directory"):
        make_node(str(root), "/dev/vfio/5", NULL, mode=0o666, uid=0, gid=0)


def test_nothing_is_made_for_a_node_that_is_removed(root: Path) -> None:
    remove_node(str(root), "/dev/vfio/devices/vfio0", NULL)
    assert list((root / "dev").iterdir()) == []


def test_a_directory_is_not_replaced_by_a_file(root: Path) -> None:
    (root / "dev/hawse/devices.json").mkdir(parents=True)
    with pytest.raises(StateError, match=r"^/dev/hawse/devices\.json: the file cannot be made in the container: "):
        write_file(str(root), "/dev/hawse/devices.json", "text")
