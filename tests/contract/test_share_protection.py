"""A share protects the host: files and devices of its kernel, and files outside of the share."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from hawse.errors import ConfigError
from hawse.host.mounts import open_sources
from hawse.linux import mounts as linux
from hawse.monitor.share.share_root import ShareRoot
from tests.support.shares import bind, in_namespace, mount_shares, mounts_below


@pytest.mark.parametrize("kind", ["proc", "sysfs", "cgroup2", "devpts"])
def test_file_system_of_the_hosts_kernel_is_refused_at_any_path(tree: Path, kind: str) -> None:
    def act() -> str:
        linux.mount("none", f"{tree}/below", kind, 0)
        before = os.listdir("/proc/self/fd")
        try:
            open_sources.open_sources([bind("tree", tree), bind("view", tree / "below")])
        except ConfigError as error:
            assert os.listdir("/proc/self/fd") == before, "a descriptor stays open"
            return error.message
        return "shared"

    said = f"cannot share {tree}/below with the guest: it is on a file system of the host kernel, "
    assert in_namespace(act) == said + kind


def test_devtmpfs_is_refused_at_any_path(tree: Path) -> None:
    """statfs(2) reports the type of tmpfs for devtmpfs, so the type is not sufficient."""

    def act() -> str:
        linux.mount("none", "/dev", "tmpfs", 0, "size=64k")
        linux.mount("/dev", f"{tree}/below", "", linux.BIND)
        try:
            open_sources.open_sources([bind("tree", tree), bind("view", tree / "below")])
        except ConfigError as error:
            return error.message.rpartition(", ")[2]
        return "shared"

    assert in_namespace(act) == "devtmpfs"


@pytest.mark.parametrize("name", ["below", "with space"])
@pytest.mark.parametrize("directory", ["share", "link/share"])
def test_kernel_file_systems_below_a_share_are_read_only(tmp_path: Path, tree: Path, name: str, directory: str) -> None:
    """A bind of / includes them. If they were writable, root in a guest could change the host's settings."""
    (tmp_path / "link").symlink_to(".")

    def act() -> Any:
        (tree / name).mkdir(exist_ok=True)
        linux.mount("none", f"{tree}/{name}", "proc", 0)
        root = ShareRoot(f"{tmp_path}/{directory}")
        mount_shares(root, "c1", [bind("tree", tree), bind("flat", tree, recursive=False)])
        try:
            os.open(f"{root.directory}/c1/tree/{name}/sys/kernel/core_pattern", os.O_WRONLY)
        except OSError as error:
            return os.strerror(error.errno or 0), os.listdir(f"{root.directory}/c1/flat/{name}")
        return "opened", []

    assert in_namespace(act) == ["Read-only file system", []]
    os.close(os.open("/proc/sys/kernel/core_pattern", os.O_WRONLY))


def test_hidden_kernel_file_system_below_a_share_is_ignored(tmp_path: Path, tree: Path) -> None:
    def act() -> list[str]:
        (tree / "below" / "proc").mkdir()
        linux.mount("none", f"{tree}/below/proc", "proc", 0)
        linux.mount("none", f"{tree}/below", "tmpfs", 0)
        root = ShareRoot(f"{tmp_path}/share")
        mount_shares(root, "c1", [bind("tree", tree)])
        return os.listdir(f"{root.directory}/c1/tree/below")

    assert in_namespace(act) == []


def test_root_of_the_share_is_read_only_for_the_guest(tmp_path: Path, tree: Path) -> None:
    """virtiofsd or QEMU serves it, as root in the monitor's mount namespace."""

    def act() -> list[str]:
        root = ShareRoot(f"{tmp_path}/share")
        mount_shares(root, "c1", [bind("rw", tree), bind("file", tree / "file")])
        names = []
        writes: list[Callable[[str], object]] = [
            lambda path: os.symlink("/etc", path),
            os.mkdir,
            os.mkfifo,
            lambda path: os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3)),
            lambda path: Path(path).write_text("x"),
            lambda path: os.rename(f"{root.directory}/c1", path),
        ]
        for place in (root.directory, f"{root.directory}/c1"):
            for write in writes:
                try:
                    write(f"{place}/new")
                    names.append("written")
                except OSError as error:
                    names.append(os.strerror(error.errno or 0))
        Path(f"{root.directory}/c1/rw/data").write_text("what is shared is written to")
        return names

    assert set(in_namespace(act)) <= {"Read-only file system", "Device or resource busy"}
    assert (tree / "data").exists()


def links(target: str) -> dict[str, Callable[[str], object]]:
    """Entries that a guest could create in a writable share, by name; each function creates one at a path."""
    return {
        "a link to a directory": lambda path: os.symlink(target, path),
        "a link to a link": lambda path: os.symlink("link", path),
        "a link upwards": lambda path: os.symlink("../..", path),
        "a file": lambda path: Path(path).write_text("data"),
        "a FIFO": os.mkfifo,
        "a directory": os.mkdir,
    }


@pytest.mark.parametrize("kind", list(links("")))
@pytest.mark.parametrize("place", ["container", "point"])
def test_planted_entries_of_a_guest_are_never_followed(tmp_path: Path, tree: Path, kind: str, place: str) -> None:
    """The second line of defence: the root is read-only for the guest, but here the test writes to it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "empty").touch()
    os.mkfifo(outside / "fifo")

    def act() -> Any:
        root = ShareRoot(f"{tmp_path}/share")
        with suppress(FileExistsError):
            os.mkdir("c1", dir_fd=root._writable)
        os.symlink(str(outside), "link", dir_fd=root._writable)
        path = "c2" if place == "container" else "c1/rw"
        links(str(outside))[kind](f"/proc/self/fd/{root._writable}/{path}")
        name, failure = path.partition("/")[0], ""
        for share_ in (bind("file", tree / "file"), bind("rw", tree)):
            try:
                mount_shares(root, name, [share_])
            except ConfigError as error:
                failure = error.message
        with suppress(OSError):
            root.remove(name)
        return failure, sorted(mounts_below(str(tmp_path)))

    failure, left = in_namespace(act)
    if (kind, place) != ("a directory", "container"):
        assert failure.startswith(f"cannot share {tree} with the guest: ")
    assert left == ["/share"]
    assert sorted(os.listdir(outside)) == ["empty", "fifo"], "an entry was created outside of the share"
    assert sorted(os.listdir(tree)) == ["below", "file"]
