"""Mounts of a sandbox's share: binds of the host's files, and mounts below them, made before or later."""

from __future__ import annotations

import json
import os
import traceback
from pathlib import Path
from typing import Any

import pytest

from hawse.errors import ConfigError, HostError
from hawse.host.cgroup.control_cgroup import ControlCgroup
from hawse.host.mounts import open_sources
from hawse.linux import mountinfo
from hawse.linux import mounts as linux
from hawse.monitor.share import share_root as share
from hawse.monitor.share.share_root import ShareRoot
from hawse.oci.guest.idmap import IdMap
from hawse.oci.guest.share import Share
from tests.support.shares import bind, common, in_namespace, mount_below, mount_shares, mounts_below


def test_shares_are_bound_with_the_mounts_below_them(tmp_path: Path, tree: Path) -> None:
    target = f"{tmp_path}/share/c1"

    def act() -> Any:
        root = ShareRoot(f"{tmp_path}/share")
        mount_below(tree)
        requests = [
            bind("rw", tree), bind("ro", tree, readonly=True), bind("flat", tree, recursive=False),
            bind("file", tree / "file"), bind("private", tree, private=True),
        ]  # fmt: skip
        mount_shares(root, "c1", requests)
        mounted = {
            name: (sorted({"ro", "rw"} & options), kind) for name, (options, kind) in mounts_below(target).items()
        }
        unsafe = [name for name, (options, _) in mounts_below(target).items() if not {"nodev", "nosuid"} <= options]
        late = tree / "late"
        late.mkdir()
        content = Path(f"{target}/file").read_text()
        options, propagation = mounts_below(f"{tmp_path}/share")[""]
        return mounted, unsafe, os.listdir(f"{target}/rw"), content, sorted(options), propagation

    mounted, unsafe, names, content, options, propagation = in_namespace(act)
    assert set(mounted) == {"/rw", "/rw/below", "/ro", "/ro/below", "/flat", "/file", "/private", "/private/below"}
    assert mounted["/ro"][0] == ["ro"]
    assert [mounted[name][0] for name in ("/rw", "/flat", "/file")] == [["rw"]] * 3
    assert "master" not in mounted["/private"][1]
    assert unsafe == []
    assert (sorted(names), content) == (["below", "file", "late"], "content")
    assert propagation == "shared", "later mounts appear in virtiofsd's copy of the namespace"
    assert {"ro", "nodev", "nosuid", "noexec"} <= set(options)
    assert mounts_below(str(tmp_path)) == {}, "the host's mount table does not contain them"
    assert os.listdir(f"{tmp_path}/share") == [], "no file of it is on the host's file system"


def test_error_names_a_source_that_cannot_be_shared(tree: Path) -> None:
    gone = Share(name="gone", source="/no/such", is_dir=True, readonly=False)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigError) as caught:
        open_sources.open_sources([bind("rw", tree), gone])
    assert caught.value.message == "cannot share /no/such with the guest: No such file or directory"
    assert len(os.listdir("/proc/self/fd")) == before, "a descriptor stays open"


def test_mounts_below_a_recursively_read_only_share_are_read_only(tmp_path: Path, tree: Path) -> None:
    def act() -> dict[str, str]:
        mount_below(tree)
        requests = [bind("ro", tree, readonly=True), bind("rro", tree, readonly=True, readonly_below=True)]
        mount_shares(ShareRoot(f"{tmp_path}/share"), "c1", requests)
        mounted = {}
        for place in ("ro", "ro/below", "rro", "rro/below"):
            try:
                Path(f"{tmp_path}/share/c1/{place}/new").write_text("x")
                mounted[place] = "written"
            except OSError as error:
                mounted[place] = os.strerror(error.errno or 0)
        Path(f"{tree}/below/new").write_text("the host's own mount is as it was")
        return mounted

    readonly = "Read-only file system"
    assert in_namespace(act) == {"ro": readonly, "ro/below": "written", "rro": readonly, "rro/below": readonly}


def test_error_names_the_kernel_version_when_mount_setattr_is_missing(tmp_path: Path) -> None:
    def act() -> str:
        linux._SYS_MOUNT_SETATTR = 10_000
        try:
            ShareRoot(f"{tmp_path}/share")
        except HostError as error:
            return error.sentence()
        return "made"

    assert in_namespace(act).endswith("Function not implemented [hawse needs Linux 5.12 or newer, with CAP_SYS_ADMIN]")


def test_shares_of_a_container_are_mounted_and_removed(tmp_path: Path, tree: Path) -> None:
    requests = [bind("rw", tree), bind("flat", tree, recursive=False, readonly=True), bind("file", tree / "file")]
    target = f"{tmp_path}/share/c2"

    def act() -> Any:
        root = ShareRoot(f"{tmp_path}/share")
        mount_below(tree)
        sources = open_sources.open_sources(requests)
        inherited = [os.get_inheritable(source.tree) for source in sources]
        before = os.listdir("/proc/self/fd")
        root.place("c2", requests, sources)
        assert len(os.listdir("/proc/self/fd")) == len(before), "a descriptor stays open"
        mounted = {name: sorted({"ro", "rw"} & options) for name, (options, _) in mounts_below(target).items()}
        root.remove("c2")
        assert len(os.listdir("/proc/self/fd")) == len(before), "a descriptor stays open"
        root.remove("never")
        return mounted, inherited, mounts_below(target), os.path.exists(target), (tree / "file").read_text()

    mounted, inherited, after, exists, content = in_namespace(act)
    assert mounted == {"/rw": ["rw"], "/rw/below": ["rw"], "/flat": ["ro"], "/file": ["rw"]}
    assert (inherited, after, exists, content) == ([False] * 3, {}, False, "content")


def test_later_mounts_of_the_host_appear_unless_the_share_is_private(tmp_path: Path, tree: Path) -> None:
    """In the monitor's mount namespace, and in virtiofsd's, which is an earlier copy of it."""
    linux.mount(str(tree), str(tree), "", linux.BIND)
    linux.mount("none", str(tree), "", linux.SHARED)
    try:
        reading, writing = os.pipe()
        placed_, go = os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                share.enter_private_namespace()
                root = ShareRoot(f"{tmp_path}/share")
                virtiofsd = os.fork()
                if virtiofsd == 0:
                    share.enter_private_namespace()
                    os.write(writing, b".")
                    os.read(go[0], 1)
                    mounted = mounts_below(f"{tmp_path}/share/c1")
                    os.write(writing, json.dumps(sorted(mounted)).encode())
                    os._exit(0)
                os.read(reading, 1)
                mount_shares(root, "c1", [bind("late", tree), bind("private", tree, private=True)])
                os.write(placed_[1], b".")
                os.waitpid(virtiofsd, 0)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        os.read(placed_[0], 1)
        linux.mount(str(tree), f"{tree}/below", "", linux.BIND)
        os.write(go[1], b".")
        assert os.waitpid(child, 0)[1] == 0
        assert json.loads(os.read(reading, 65536)) == ["/late", "/late/below", "/private"]
    finally:
        for point in (f"{tree}/below", str(tree)):
            linux.unmount(point)
        for fd in (reading, writing, *placed_, *go):
            os.close(fd)


@pytest.mark.parametrize("private", [False, True])
def test_mounts_made_in_a_share_do_not_appear_on_the_host(tmp_path: Path, tree: Path, private: bool) -> None:
    def act() -> list[str]:
        linux.mount(str(tree), str(tree), "", linux.BIND)
        linux.mount("none", str(tree), "", linux.SHARED)
        mount_shares(ShareRoot(f"{tmp_path}/share"), "c1", [bind("rw", tree, private=private)])
        linux.mount("none", f"{tmp_path}/share/c1/rw/below", "tmpfs", 0)
        return sorted(mounts_below(str(tmp_path)))

    assert in_namespace(act) == ["/share", "/share/c1/rw", "/share/c1/rw/below", "/tree"]


def test_share_whose_target_exists_is_refused(tmp_path: Path, tree: Path) -> None:
    def act() -> list[str]:
        root, mounted = ShareRoot(f"{tmp_path}/share"), []
        for request in (bind("rw", tree), bind("file", tree / "file")):
            mount_shares(root, "c1", [request])
            try:
                mount_shares(root, "c1", [request])
            except ConfigError as error:
                mounted.append(error.message.rpartition(": ")[2])
        return mounted

    assert in_namespace(act) == ["File exists"] * 2


@pytest.mark.parametrize("name", ["a\rb", "a\x0cb", "a\x85b", "a\u2028b", "a\x1cb", "a b", "a#b", "a\udcffb"])
def test_mount_points_with_unusual_names_are_read(tmp_path: Path, tree: Path, name: str) -> None:
    """Any user may mount a file system at such a path (fuse(4)), and every start reads the mount table."""

    def act() -> list[bool]:
        os.mkdir(f"{tree}/{name}")
        linux.mount("x", f"{tree}/{name}", "tmpfs", 0)
        ControlCgroup("/none", str(tmp_path))
        root = ShareRoot(f"{tmp_path}/share")
        mount_shares(root, "c1", [common("m", tree)])
        points = [mount.point for mount in mountinfo.read() if mount.point.startswith(f"{tree}/")]
        return [points == [f"{tree}/{name}"]]

    assert in_namespace(act) == [True]


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ([("rootfs", "ext4"), ("mount7", "nfs4")], []),
        ([("m", "tmpfs"), ("m/b", "xfs"), ("m/a", "ext4"), ("m/a/c", "proc")], ["m/a", "m/a/c", "m/b"]),
        ([("m", "ext4"), ("m/nfs", "nfs4"), ("m/nfs/disk", "ext4"), ("m/nfs2", "ext4")], ["m/nfs2"]),
        ([("m", "fuse.sshfs"), ("m/below", "tmpfs")], []),
        ([("m", "ext4"), ("m/proc", "proc"), ("m/auto", "autofs"), ("m/auto", "ext4")], ["m/proc"]),
        ([("m", "ext4"), ("m/twice", "tmpfs"), ("m/twice", "ext4")], ["m/twice"]),
    ],
    ids=["mounts of the container", "inner ones", "below a server", "all below a server", "automounter", "twice"],
)
def test_guest_looks_up_inner_mounts_that_cannot_hang(table: list[tuple[str, str]], expected: list[str]) -> None:
    assert share.inner(table) == expected


def test_mounts_of_a_container_are_listed_until_it_is_removed(tmp_path: Path, tree: Path) -> None:
    def act() -> list[list[str]]:
        linux.mount("none", f"{tree}/below", "tmpfs", 0)
        root = ShareRoot(f"{tmp_path}/share")
        mount_shares(root, "c1", [bind("all", tree), bind("flat", tree, recursive=False), bind("file", tree / "file")])
        mounted = [root.mounts("c1"), root.mounts("c2")]
        root.remove("c1")
        return [*mounted, root.mounts("c1")]

    assert in_namespace(act) == [["c1/all", "c1/flat", "c1/all/below"], [], []]


def test_owners_in_a_share_are_mapped_in_both_directions(tmp_path: Path, tree: Path) -> None:
    """Owners in a mount below it are mapped only if requested. Files in the source keep their owners."""
    target = f"{tmp_path}/share/c1"
    owners = IdMap(uids=((0, 100000, 65536),), gids=((0, 200000, 65536),))
    below = IdMap(owners.uids, owners.gids, recursive=True)

    def act() -> Any:
        root = ShareRoot(f"{tmp_path}/share")
        linux.mount("none", f"{tree}/below", "tmpfs", 0, "mode=755")
        mount_shares(
            root,
            "c1",
            [
                bind("one", tree, owners=owners),
                bind("all", tree, owners=below),
                bind("file", tree / "file", owners=owners),
            ],
        )
        shown = {
            name: (os.stat(f"{target}/{name}").st_uid, os.stat(f"{target}/{name}").st_gid)
            for name in ("one/file", "one/below", "all/below", "file")
        }
        os.chown(f"{target}/one/file", 100005, 200006)
        return shown, [os.stat(tree / "file").st_uid, os.stat(tree / "file").st_gid]

    shown, written = in_namespace(act)
    mapped = [100000, 200000]
    assert shown == {"one/file": mapped, "one/below": [0, 0], "all/below": mapped, "file": mapped}
    assert written == [5, 6]


@pytest.mark.parametrize(
    ("uids", "words"),
    [
        (((0, 1, 2), (1, 9, 2)), "the kernel refuses uidMappings or gidMappings: Invalid argument"),
        (((0, 100000, 1),), "its file system does not support ID-mapped mounts: Invalid argument"),
    ],
)
def test_error_names_a_share_whose_owners_cannot_be_mapped(tree: Path, uids: Any, words: str) -> None:
    def act() -> Any:
        linux.mount("none", f"{tree}/below", "ramfs", 0)
        owners = IdMap(uids=uids, gids=((0, 100000, 1),))
        with pytest.raises(ConfigError) as caught:
            open_sources.open_sources([bind("x", tree / "below", owners=owners)])
        return caught.value.sentence()

    sentence = in_namespace(act)
    assert f"cannot map the owners of {tree}/below: {words}" in sentence
