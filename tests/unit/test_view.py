"""The container's files at the pid that engines get: `podman cp` and `podman top` enter the namespaces of this
process."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hawse.commands.spawn import Namespaces
from hawse.proxy.view import encode
from hawse.state.store import Store
from tests.support.fake_monitor import FakeMonitor
from tests.support.mount_table import mounts_of
from tests.support.netns import Namespace
from tests.support.proxies import Attached, Pipes


@pytest.fixture
def monitor(tmp_path: Path) -> Iterator[FakeMonitor]:
    with FakeMonitor(Store(str(tmp_path / "state"), "c1")) as monitor:
        yield monitor


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    directory = tmp_path / "rootfs"
    directory.mkdir()
    (directory / "hello").write_text("from the container")
    return directory


@contextmanager
def viewed(
    monitor: FakeMonitor,
    rootfs: Path,
    *mounts: dict[str, Any],
    readonly: bool = False,
    directory: str = "/",
    network: str = "",
) -> Iterator[tuple[Path, int, dict[str, Any]]]:
    """A container's first proxy: its root directory, its pid and the parameters of its call."""
    view = encode(str(rootfs), mounts, readonly=readonly, directory=directory)
    with Pipes() as pipes:
        proxy = pipes.start(monitor, namespaces=Namespaces(network, view))
        os.close(view)
        with Attached(monitor) as process:
            yield Path(f"/proc/{proxy.pid}/root"), proxy.pid, process.params
            process.exit(0)
            assert proxy.wait() == 0


def error_of(path: Path) -> int:
    """The errno of a creation of a file, 0 for success."""
    try:
        path.write_text("x")
    except OSError as error:
        assert error.errno is not None
        return error.errno
    return 0


def test_root_is_the_containers_and_the_host_keeps_its_mounts(monitor: FakeMonitor, rootfs: Path) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    with viewed(monitor, rootfs) as (root, pid, params):
        assert "failure" not in params
        assert [path.name for path in root.iterdir()] == ["hello"]
        assert (root / "hello").read_text() == "from the container"
        assert error_of(root / "new") == 0
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        mounted = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
        assert [line.split()[4] for line in mounted] == ["/"], "the host's file systems are out of reach"
    assert (rootfs / "new").read_text() == "x"
    assert Path("/proc/self/mountinfo").read_text() == before


def test_process_is_the_first_of_its_pid_namespace(monitor: FakeMonitor, rootfs: Path) -> None:
    with viewed(monitor, rootfs) as (_, pid, _), open(f"/proc/{pid}/status") as file:
        assert f"NSpid:\t{pid}\t1\n" in file.read()
    kinds = [os.readlink(f"/proc/self/ns/{name}") for name in ("pid", "pid_for_children")]
    assert kinds[0] == kinds[1], "only the proxy is in it"


@pytest.mark.parametrize("readonly", [False, True])
def test_shared_directory_is_shown(monitor: FakeMonitor, rootfs: Path, tmp_path: Path, readonly: bool) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_text("shared")
    mount = {"destination": "/deep/data", "source": str(source), "is_dir": True, "readonly": readonly}
    with viewed(monitor, rootfs, mount) as (root, _, _):
        assert (root / "deep/data/file").read_text() == "shared"
        assert error_of(root / "deep/data/new") == (errno.EROFS if readonly else 0)
        assert error_of(root / "beside") == 0
    assert (source / "new").exists() is not readonly
    assert list((rootfs / "deep/data").iterdir()) == []


def test_shared_file_is_shown(monitor: FakeMonitor, rootfs: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_text("shared")
    mount = {"destination": "/etc/hosts", "source": str(source), "is_dir": False, "readonly": True}
    with viewed(monitor, rootfs, mount) as (root, _, _):
        assert (root / "etc/hosts").read_text() == "shared"
        assert error_of(root / "etc/hosts") == errno.EROFS
    assert stat.S_ISREG((rootfs / "etc/hosts").stat().st_mode)


def test_mount_points_of_file_systems_of_the_guest_are_created(monitor: FakeMonitor, rootfs: Path) -> None:
    """If the root file system is read-only, the guest cannot create them. Existing files are kept."""
    mounts = [
        {"destination": "/deep/directory", "type": "directory"},
        {"destination": "/deep/null", "type": "file"},
        {"destination": "/hello", "type": "file"},
        {"destination": "/empty", "type": "tmpfs"},
        {"destination": "/empty/null", "type": "file"},
    ]
    with viewed(monitor, rootfs, *mounts, readonly=True) as (root, _, _):
        assert (root / "hello").read_text() == "from the container"
        assert error_of(root / "new") == errno.EROFS
    assert (rootfs / "deep/directory").is_dir()
    assert (rootfs / "deep/null").read_bytes() == b""
    assert list((rootfs / "empty").iterdir()) == [], "a file system of the guest creates its own mount points"


def test_file_systems_of_the_guest_are_empty_and_readonly(monitor: FakeMonitor, rootfs: Path) -> None:
    """Files copied there would be lost, so an error is better."""
    mounts = [{"destination": "/proc", "type": "proc"}, {"destination": "/tmp", "type": "tmpfs"}]
    (rootfs / "tmp").mkdir()
    (rootfs / "tmp/hidden").write_text("")
    with viewed(monitor, rootfs, *mounts) as (root, pid, _):
        assert (root / "proc/1/comm").read_text() == "hawse-proxy\n"
        assert list((root / "tmp").iterdir()) == []
        assert error_of(root / "tmp/new") == errno.EROFS
        options = {mount.point: mount.options for mount in mounts_of(pid)}
        assert options["/proc"] >= {"rw", "nosuid", "nodev", "noexec"}
        assert options["/tmp"] >= {"ro", "nosuid", "nodev", "noexec"}


def test_mounts_of_the_host_are_shown_and_never_reached(monitor: FakeMonitor, rootfs: Path) -> None:
    """This includes mounts below the shared files; mounts in the view must not appear on the host."""
    inner = rootfs / "inner"
    mount = {"destination": "/data", "source": str(rootfs), "is_dir": True, "readonly": False}
    with mounted(rootfs), mounted(rootfs / "inner"):
        (inner / "file").write_text("mounted")
        with viewed(monitor, rootfs, mount) as (root, pid, _):
            assert (root / "inner/file").read_text() == (root / "data/inner/file").read_text() == "mounted"
            text = Path(f"/proc/{pid}/mountinfo").read_text()
            assert len(text.splitlines()) == 4
            assert "shared:" not in text


@contextmanager
def mounted(path: Path) -> Iterator[None]:
    """Mount a separate file system there, with shared propagation."""
    path.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "none", str(path)], check=True)
    subprocess.run(["mount", "--make-shared", str(path)], check=True)
    try:
        path.joinpath("inner").mkdir(exist_ok=True)
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


def test_mount_that_cannot_be_shown_is_left_to_the_guest(monitor: FakeMonitor, rootfs: Path) -> None:
    """The guest's runtime meets the same error and reports it; later mounts are shown."""
    mounts = [{"destination": "/hello/below", "type": "tmpfs"}, {"destination": "/after", "type": "tmpfs"}]
    with viewed(monitor, rootfs, *mounts) as (root, _, params):
        assert "failure" not in params
        assert error_of(root / "after/new") == errno.EROFS


@pytest.mark.parametrize("readonly", [False, True])
def test_working_directory_is_created_even_in_a_readonly_root(
    monitor: FakeMonitor, rootfs: Path, readonly: bool
) -> None:
    with viewed(monitor, rootfs, directory="/srv/app", readonly=readonly) as (root, _, _):
        assert (root / "srv/app").is_dir()
        assert error_of(root / "srv/app/new") == (errno.EROFS if readonly else 0)


def test_symbolic_links_do_not_leave_the_container(monitor: FakeMonitor, rootfs: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (rootfs / "link").symlink_to(outside)
    with viewed(monitor, rootfs, {"destination": "/link/mnt", "type": "tmpfs"}):
        pass
    assert list(outside.iterdir()) == []


def test_mount_point_is_created_at_the_target_of_a_dangling_link(
    monitor: FakeMonitor, rootfs: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.write_text("shared")
    (rootfs / "etc").mkdir(exist_ok=True)
    (rootfs / "etc/resolv.conf").symlink_to("../run/deep/resolv.conf")
    (rootfs / "data").symlink_to("/run/data")
    file = {"destination": "/etc/resolv.conf", "source": str(source), "is_dir": False, "readonly": False}
    directory = {"destination": "/data", "source": str(tmp_path), "is_dir": True, "readonly": False}
    with viewed(monitor, rootfs, file, directory) as (root, _, _):
        assert (root / "run/deep/resolv.conf").read_text() == "shared"
        assert (root / "run/data/source").read_text() == "shared"
    assert (rootfs / "run/deep/resolv.conf").is_file()


def test_fifo_of_the_image_can_be_a_mount_point(monitor: FakeMonitor, rootfs: Path, tmp_path: Path) -> None:
    """It must not be opened: without a writer the open would block."""
    source = tmp_path / "source"
    source.write_text("shared")
    os.mkfifo(rootfs / "fifo")
    file = {"destination": "/fifo", "source": str(source), "is_dir": False, "readonly": False}
    with viewed(monitor, rootfs, file) as (root, _, _):
        assert (root / "fifo").read_text() == "shared"


def test_missing_files_are_reported(monitor: FakeMonitor, tmp_path: Path) -> None:
    """The monitor reports it as the reason of the failed creation."""
    with viewed(monitor, tmp_path / "none") as (_, _, params):
        assert params["failure"] == f"No such file or directory: {tmp_path}/none"


@pytest.mark.parametrize("is_given", [False, True])
def test_network_is_that_of_the_engine_or_a_new_one(monitor: FakeMonitor, rootfs: Path, is_given: bool) -> None:
    with Namespace() as network:
        theirs = os.stat(network.path).st_ino
        with viewed(monitor, rootfs, network=network.path if is_given else "") as (_, pid, _):
            inode = os.stat(f"/proc/{pid}/ns/net").st_ino
            assert (inode == theirs) is is_given
            assert inode != os.stat("/proc/self/ns/net").st_ino
