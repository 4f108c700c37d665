"""Device nodes and files that the agent creates in a running container, which may be hostile."""

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


def test_node_has_its_numbers_mode_and_owners(root: Path) -> None:
    make_node(str(root), "/dev/vfio/5", NULL, mode=0o640, uid=1000, gid=1001)
    status = (root / "dev" / "vfio" / "5").stat()
    assert stat.S_ISCHR(status.st_mode)
    assert (status.st_rdev, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (
        os.makedev(*NULL), 0o640, 1000, 1001,
    )  # fmt: skip


def test_existing_node_is_not_changed(root: Path) -> None:
    make_node(str(root), "/dev/vfio/vfio", NULL, mode=0o600, uid=7, gid=7)
    make_node(str(root), "/dev/vfio/vfio", NULL, mode=0o666, uid=0, gid=0)
    assert (root / "dev" / "vfio" / "vfio").stat().st_uid == 7


@pytest.mark.parametrize("other", ["file", "link", "device"])
def test_other_file_at_the_path_is_not_changed(root: Path, other: str) -> None:
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
def test_symbolic_link_never_leads_out_of_the_container(root: Path, tmp_path: Path, target: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    link = root / "dev" / "vfio"
    link.symlink_to(str(outside) if target == "/outside" else target)
    with pytest.raises(StateError, match="the directory vfio cannot be opened"):
        make_node(str(root), "/dev/vfio/5", NULL, mode=0o666, uid=0, gid=0)
    with pytest.raises(StateError, match="the directory vfio cannot be opened"):
        write_file(str(root), "/dev/vfio/map", "text")
    remove_node(str(root), "/dev/vfio/5", NULL)
    assert list(outside.iterdir()) == []


def test_file_or_symbolic_link_is_replaced(root: Path, tmp_path: Path) -> None:
    write_file(str(root), "/dev/hawse/devices.json", "one")
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    (root / "dev" / "hawse" / "devices.json").unlink()
    (root / "dev" / "hawse" / "devices.json").symlink_to(victim)
    write_file(str(root), "/dev/hawse/devices.json", "two")
    assert (root / "dev" / "hawse" / "devices.json").read_text() == "two"
    assert victim.read_text() == "untouched"


def test_removal_of_a_missing_node_is_not_an_error(root: Path) -> None:
    remove_node(str(root), "/dev/vfio/5", NULL)
    make_node(str(root), "/dev/vfio/5", NULL, mode=0o666, uid=0, gid=0)
    remove_node(str(root), "/dev/vfio/5", NULL)
    assert list((root / "dev" / "vfio").iterdir()) == []


def test_node_is_created_without_opening_its_device(root: Path) -> None:
    """Only the container opens it: a group can be opened once, and in this test no such device exists."""
    make_node(str(root), "/dev/vfio/5", (4095, 1), mode=0o640, uid=7, gid=8)
    status = (root / "dev/vfio/5").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o640, 7, 8)


def test_file_instead_of_a_directory_is_named_in_the_error(root: Path) -> None:
    (root / "dev/vfio").write_text("")
    with pytest.raises(StateError, match=r"^/dev/vfio/5: the directory vfio cannot be opened: Not a "):
        make_node(str(root), "/dev/vfio/5", NULL, mode=0o666, uid=0, gid=0)


def test_removal_creates_no_directories(root: Path) -> None:
    remove_node(str(root), "/dev/vfio/devices/vfio0", NULL)
    assert list((root / "dev").iterdir()) == []


def test_directory_is_not_replaced_by_a_file(root: Path) -> None:
    (root / "dev/hawse/devices.json").mkdir(parents=True)
    with pytest.raises(StateError, match=r"^/dev/hawse/devices\.json: the file cannot be created in the container: "):
        write_file(str(root), "/dev/hawse/devices.json", "text")


def test_bound_node_has_an_empty_file_as_its_mount_point(root: Path) -> None:
    places = []
    bind_node(str(root), "/dev/vfio/5", NULL, lambda place: places.append(os.fstat(place).st_ino))
    assert [(root / "dev" / "vfio" / "5").stat().st_ino] == places
    make_node(str(root), "/dev/vfio/6", NULL, mode=0o600, uid=0, gid=0)
    bind_node(str(root), "/dev/vfio/6", NULL, lambda _place: pytest.fail("one that is there is left"))


def test_failed_bind_leaves_no_files(root: Path) -> None:
    def refuse(_place: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    with pytest.raises(StateError, match="/dev/vfio/5: the node cannot be bound in the container: Operation not"):
        bind_node(str(root), "/dev/vfio/5", NULL, refuse)
    assert os.listdir(root / "dev" / "vfio") == []
    (root / "dev" / "vfio" / "5").write_text("mine")
    with pytest.raises(StateError, match="another file exists at this path"):
        bind_node(str(root), "/dev/vfio/5", NULL, lambda _place: None)


def test_bind_in_another_mount_namespace_exists_only_there(root: Path) -> None:
    make_node(str(root), "/dev/source", NULL, mode=0o640, uid=7, gid=8)
    with subprocess.Popen(["unshare", "--mount", "--propagation", "private", "sleep", "60"]) as other:
        try:
            wait_until(lambda: Path(f"/proc/{other.pid}/comm").read_text() == "sleep\n")
            namespace = os.open(f"/proc/{other.pid}/ns/mnt", os.O_RDONLY)
            path_in_the_other_namespace = f"/proc/{other.pid}/root{root}"
            bind_node(
                path_in_the_other_namespace,
                "/dev/vfio/5",
                NULL,
                lambda place: syscalls.bind_in(namespace, f"{root}/dev/source", place),
            )
            os.close(namespace)
            assert stat.S_ISCHR(os.stat(f"{path_in_the_other_namespace}/dev/vfio/5").st_mode)
            assert stat.S_ISREG((root / "dev" / "vfio" / "5").stat().st_mode)
            remove_node(path_in_the_other_namespace, "/dev/vfio/5", NULL)
            assert not os.path.exists(f"{path_in_the_other_namespace}/dev/vfio/5")
            assert "vfio/5" not in Path(f"/proc/{other.pid}/mountinfo").read_text()
        finally:
            other.kill()


def test_files_belong_to_the_requested_owner(root: Path) -> None:
    (root / "dev").chmod(0o777)
    directory = os.open(root, os.O_RDONLY)  # as the agent uses it: the directories above it are not checked
    with syscalls.file_owner(1000, 1001):
        write_file(f"/proc/self/fd/{directory}", "/dev/theirs", "text")
    os.close(directory)
    write_file(str(root), "/dev/ours", "text")
    owners = [((root / "dev" / name).stat().st_uid, (root / "dev" / name).stat().st_gid) for name in ("theirs", "ours")]
    assert owners == [(1000, 1001), (0, 0)]
