"""The mounts of a sandbox's share, made in a mount namespace that ends with the process that made them."""

from __future__ import annotations

import json
import os
import stat
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from hawse.errors import ConfigError, HostError
from hawse.linux import mountinfo
from hawse.linux import mounts as linux
from hawse.oci.overlay import Overlay
from hawse.sandbox import share
from hawse.sandbox.control import ControlCgroup
from hawse.sandbox.plan import Share
from hawse.sandbox.share import ShareRoot
from tests.support.forked import in_child


def apart(act: Callable[[], Any]) -> Any:
    """Return the value of ``act`` in a process with a private mount namespace. Raises AssertionError if it raises."""

    def enter_and_act() -> Any:
        share.enter_private_namespace()
        return act()

    return in_child(enter_and_act)


def mounts(below: str) -> dict[str, tuple[set[str], str]]:
    """Options and propagation of each mount below a directory, by its path there."""
    found = {}
    with open("/proc/self/mountinfo") as file:
        for line in file:
            fields, _, _ = line.partition(" - ")
            _, _, _, _, point, options, *rest = fields.split()
            if point == below or point.startswith(f"{below}/"):
                found[point[len(below) :]] = (set(options.split(",")), " ".join(word.split(":")[0] for word in rest))
    return found


def made(name: str, source: Path, **changes: Any) -> Share:
    return Share(name=name, source=str(source), is_dir=source.is_dir(), **{"readonly": False, **changes})


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory with one below it that another file system is to be mounted on, and a file."""
    (tmp_path / "tree" / "below").mkdir(parents=True)
    (tmp_path / "tree" / "file").write_text("content")
    return tmp_path / "tree"


def mount_below(tree: Path) -> None:
    """A mount in the tree, as a bundle's may have."""
    linux.mount(str(tree), f"{tree}/below", "", linux.BIND)


def placed(root: ShareRoot, container: str, shares: list[Share]) -> None:
    """Share these, from this mount namespace."""
    sources = share.open_sources(shares)
    try:
        assert root.place(container, shares, sources) == []
    finally:
        share.close(sources)


def test_shares_are_bound_with_what_is_mounted_below_them(tmp_path: Path, tree: Path) -> None:
    target = f"{tmp_path}/share/c1"

    def act() -> Any:
        root = ShareRoot(f"{tmp_path}/share")
        mount_below(tree)
        wanted = [
            made("rw", tree), made("ro", tree, readonly=True), made("flat", tree, recursive=False),
            made("file", tree / "file"), made("private", tree, private=True),
        ]  # fmt: skip
        placed(root, "c1", wanted)
        found = {name: (sorted({"ro", "rw"} & options), kind) for name, (options, kind) in mounts(target).items()}
        unsafe = [name for name, (options, _) in mounts(target).items() if not {"nodev", "nosuid"} <= options]
        late = tree / "late"
        late.mkdir()
        content = Path(f"{target}/file").read_text()
        options, propagation = mounts(f"{tmp_path}/share")[""]
        return found, unsafe, os.listdir(f"{target}/rw"), content, sorted(options), propagation

    found, unsafe, names, content, options, propagation = apart(act)
    assert set(found) == {"/rw", "/rw/below", "/ro", "/ro/below", "/flat", "/file", "/private", "/private/below"}
    assert found["/ro"][0] == ["ro"]
    assert [found[name][0] for name in ("/rw", "/flat", "/file")] == [["rw"]] * 3
    assert "master" not in found["/private"][1]
    assert unsafe == []
    assert (sorted(names), content) == (["below", "file", "late"], "content")
    assert propagation == "shared", "virtiofsd's copy of the namespace gets what is mounted later"
    assert {"ro", "nodev", "nosuid", "noexec"} <= set(options)
    assert mounts(str(tmp_path)) == {}, "the host's table has none of it"
    assert os.listdir(f"{tmp_path}/share") == [], "nothing of it is on the host's file system"


def test_a_source_that_cannot_be_shared_is_named(tree: Path) -> None:
    gone = Share(name="gone", source="/no/such", is_dir=True, readonly=False)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigError) as caught:
        share.open_sources([made("rw", tree), gone])
    assert caught.value.message == "cannot share /no/such with the guest: No such file or directory"
    assert len(os.listdir("/proc/self/fd")) == before, "a descriptor stays"


def test_a_recursively_read_only_share_cannot_be_written_to_below(tmp_path: Path, tree: Path) -> None:
    def act() -> dict[str, str]:
        mount_below(tree)
        wanted = [made("ro", tree, readonly=True), made("rro", tree, readonly=True, readonly_below=True)]
        placed(ShareRoot(f"{tmp_path}/share"), "c1", wanted)
        found = {}
        for place in ("ro", "ro/below", "rro", "rro/below"):
            try:
                Path(f"{tmp_path}/share/c1/{place}/new").write_text("x")
                found[place] = "written"
            except OSError as error:
                found[place] = os.strerror(error.errno or 0)
        Path(f"{tree}/below/new").write_text("the host's own mount is as it was")
        return found

    readonly = "Read-only file system"
    assert apart(act) == {"ro": readonly, "ro/below": "written", "rro": readonly, "rro/below": readonly}


@pytest.mark.parametrize("kind", ["proc", "sysfs", "cgroup2", "devpts"])
def test_a_view_of_the_hosts_kernel_is_not_shared_wherever_it_is_mounted(tree: Path, kind: str) -> None:
    def act() -> str:
        linux.mount("none", f"{tree}/below", kind, 0)
        before = os.listdir("/proc/self/fd")
        try:
            share.open_sources([made("tree", tree), made("view", tree / "below")])
        except ConfigError as error:
            assert os.listdir("/proc/self/fd") == before, "a descriptor stays"
            return error.message
        return "shared"

    said = f"cannot share {tree}/below with the guest: it is on a file system of the host's kernel, "
    assert apart(act) == said + kind


def test_the_hosts_devices_are_not_shared_wherever_they_are_mounted(tree: Path) -> None:
    """By its type /dev is a tmpfs, as many are."""

    def act() -> str:
        linux.mount("none", "/dev", "tmpfs", 0, "size=64k")
        linux.mount("/dev", f"{tree}/below", "", linux.BIND)
        try:
            share.open_sources([made("tree", tree), made("view", tree / "below")])
        except ConfigError as error:
            return error.message.rpartition(", ")[2]
        return "shared"

    assert apart(act) == "devtmpfs"


@pytest.mark.parametrize("name", ["below", "with space"])
@pytest.mark.parametrize("directory", ["share", "link/share"])
def test_views_of_the_kernel_below_a_share_are_read_only(tmp_path: Path, tree: Path, name: str, directory: str) -> None:
    """A bind of / includes them. Root in a guest could change the host's settings by them."""
    (tmp_path / "link").symlink_to(".")

    def act() -> Any:
        (tree / name).mkdir(exist_ok=True)
        linux.mount("none", f"{tree}/{name}", "proc", 0)
        root = ShareRoot(f"{tmp_path}/{directory}")
        placed(root, "c1", [made("tree", tree), made("flat", tree, recursive=False)])
        try:
            os.open(f"{root.directory}/c1/tree/{name}/sys/kernel/core_pattern", os.O_WRONLY)
        except OSError as error:
            return os.strerror(error.errno or 0), os.listdir(f"{root.directory}/c1/flat/{name}")
        return "opened", []

    assert apart(act) == ["Read-only file system", []]
    os.close(os.open("/proc/sys/kernel/core_pattern", os.O_WRONLY))


def test_a_view_that_another_mount_hides_does_not_stop_a_share(tmp_path: Path, tree: Path) -> None:
    def act() -> list[str]:
        (tree / "below" / "proc").mkdir()
        linux.mount("none", f"{tree}/below/proc", "proc", 0)
        linux.mount("none", f"{tree}/below", "tmpfs", 0)
        root = ShareRoot(f"{tmp_path}/share")
        placed(root, "c1", [made("tree", tree)])
        return os.listdir(f"{root.directory}/c1/tree/below")

    assert apart(act) == []


def test_a_kernel_without_mount_setattr_is_named(tmp_path: Path) -> None:
    def act() -> str:
        linux._SYS_MOUNT_SETATTR = 10_000
        try:
            ShareRoot(f"{tmp_path}/share")
        except HostError as error:
            return error.sentence()
        return "made"

    assert apart(act).endswith("Function not implemented [hawse needs Linux 5.12 or newer, with CAP_SYS_ADMIN]")


def test_what_a_container_shares_comes_and_goes(tmp_path: Path, tree: Path) -> None:
    wanted = [made("rw", tree), made("flat", tree, recursive=False, readonly=True), made("file", tree / "file")]
    target = f"{tmp_path}/share/c2"

    def act() -> Any:
        root = ShareRoot(f"{tmp_path}/share")
        mount_below(tree)
        sources = share.open_sources(wanted)
        inherited = [os.get_inheritable(source.tree) for source in sources]
        before = os.listdir("/proc/self/fd")
        root.place("c2", wanted, sources)
        assert len(os.listdir("/proc/self/fd")) == len(before), "a descriptor stays"
        found = {name: sorted({"ro", "rw"} & options) for name, (options, _) in mounts(target).items()}
        root.remove("c2")
        assert len(os.listdir("/proc/self/fd")) == len(before), "a descriptor stays"
        root.remove("never")
        return found, inherited, mounts(target), os.path.exists(target), (tree / "file").read_text()

    found, inherited, after, exists, content = apart(act)
    assert found == {"/rw": ["rw"], "/rw/below": ["rw"], "/flat": ["ro"], "/file": ["rw"]}
    assert (inherited, after, exists, content) == ([False] * 3, {}, False, "content")


def test_mounts_that_the_host_makes_later_arrive_unless_they_are_private(tmp_path: Path, tree: Path) -> None:
    """Both in the monitor's namespace and in virtiofsd's, which is a copy made before."""
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
                    found = mounts(f"{tmp_path}/share/c1")
                    os.write(writing, json.dumps(sorted(found)).encode())
                    os._exit(0)
                os.read(reading, 1)
                placed(root, "c1", [made("late", tree), made("private", tree, private=True)])
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
def test_what_is_mounted_in_the_share_stays_there(tmp_path: Path, tree: Path, private: bool) -> None:
    def act() -> list[str]:
        linux.mount(str(tree), str(tree), "", linux.BIND)
        linux.mount("none", str(tree), "", linux.SHARED)
        placed(ShareRoot(f"{tmp_path}/share"), "c1", [made("rw", tree, private=private)])
        linux.mount("none", f"{tmp_path}/share/c1/rw/below", "tmpfs", 0)
        return sorted(mounts(str(tmp_path)))

    assert apart(act) == ["/share", "/share/c1/rw", "/share/c1/rw/below", "/tree"]


def test_a_target_that_exists_is_no_target(tmp_path: Path, tree: Path) -> None:
    def act() -> list[str]:
        root, found = ShareRoot(f"{tmp_path}/share"), []
        for wanted in (made("rw", tree), made("file", tree / "file")):
            placed(root, "c1", [wanted])
            try:
                placed(root, "c1", [wanted])
            except ConfigError as error:
                found.append(error.message.rpartition(": ")[2])
        return found

    assert apart(act) == ["File exists"] * 2


def test_the_guest_cannot_write_to_the_root(tmp_path: Path, tree: Path) -> None:
    """It is served by virtiofsd or QEMU, as root in the monitor's mount namespace."""

    def act() -> list[str]:
        root = ShareRoot(f"{tmp_path}/share")
        placed(root, "c1", [made("rw", tree), made("file", tree / "file")])
        found = []
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
                    found.append("written")
                except OSError as error:
                    found.append(os.strerror(error.errno or 0))
        Path(f"{root.directory}/c1/rw/data").write_text("what is shared is written to")
        return found

    assert set(apart(act)) <= {"Read-only file system", "Device or resource busy"}
    assert (tree / "data").exists()


def links(target: str) -> dict[str, Callable[[str], object]]:
    """What a guest would plant, could it write there, by name: each makes something at the path that it is given."""
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
def test_a_planted_link_is_never_followed(tmp_path: Path, tree: Path, kind: str, place: str) -> None:
    """The second line: the root is read-only for the guest, and here it is written to all the same."""
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
        for share_ in (made("file", tree / "file"), made("rw", tree)):
            try:
                placed(root, name, [share_])
            except ConfigError as error:
                failure = error.message
        with suppress(OSError):
            root.remove(name)
        return failure, sorted(mounts(str(tmp_path)))

    failure, left = apart(act)
    if (kind, place) != ("a directory", "container"):
        assert failure.startswith(f"cannot share {tree} with the guest: ")
    assert left == ["/share"]
    assert sorted(os.listdir(outside)) == ["empty", "fifo"], "something was made there"
    assert sorted(os.listdir(tree)) == ["below", "file"]


def common(name: str, source: Path, **changes: bool) -> Share:
    return made(name, source, common=True, **changes)


def paths(root: ShareRoot, container: str) -> dict[str, tuple[str, int]]:
    return {name: (place.path, place.inode) for name, place in root.places(container).items()}


def test_containers_with_the_same_sources_have_the_same_places(tmp_path: Path, tree: Path) -> None:
    """A directory, one in it and a file in it, and a read-only bind that comes before the writable one."""

    def act() -> Any:
        root = ShareRoot(f"{tmp_path}/share")
        placed(root, "c1", [made("rootfs", tree), common("mount1", tree, readonly=True), common("mount2", tree)])
        placed(root, "c2", [made("rootfs", tree), common("mount7", tree), common("mount8", tree / "below")])
        placed(root, "c3", [common("mount1", tree / "file"), common("mount2", tmp_path / "other")])
        found = [paths(root, name) for name in ("c1", "c2", "c3")]
        mounted = []
        for name in ("c1", "c2", "c3", "never"):
            root.remove(name)
            mounted.append(sorted(mounts(root.directory)))
        placed(root, "c1", [common("mount1", tree)])
        return found, mounted, paths(root, "c1"), os.listdir(root.directory)

    (tmp_path / "other").mkdir()
    found, mounted, again, listed = apart(act)
    below, file = ((tree / name).stat().st_ino for name in ("below", "file"))
    assert found == [
        {"rootfs": ["c1/rootfs", 0], "mount1": ["@/1", 0], "mount2": ["@/1", 0]},
        {"rootfs": ["c2/rootfs", 0], "mount7": ["@/1", 0], "mount8": ["@/1/below", below]},
        {"mount1": ["@/1/file", file], "mount2": ["@/2", 0]},
    ]
    assert mounted == [
        ["", "/@/1", "/@/2", "/c2/rootfs"],
        ["", "/@/1", "/@/2"],
        [""],
        [""],
    ]
    assert (again, listed) == ({"mount1": ["@/3", 0]}, ["@"]), "no place is used twice"


def test_directory_that_was_replaced_has_a_place_of_its_own(tmp_path: Path, tree: Path) -> None:
    """What is at the path in the share is no longer what the container asks for."""

    def act() -> Any:
        root = ShareRoot(f"{tmp_path}/share")
        placed(root, "c1", [common("mount1", tree)])
        wanted = [common("mount1", tree / "below"), common("mount2", tree / "link")]
        sources = share.open_sources(wanted)
        (tree / "below").rename(tree / "gone")
        (tree / "below").mkdir()
        root.place("c2", wanted, sources)
        return paths(root, "c2")

    (tree / "target").mkdir()
    (tree / "link").symlink_to("target")
    target = (tree / "target").stat().st_ino
    assert apart(act) == {"mount1": ["@/2", 0], "mount2": ["@/1/target", target]}


def test_containers_share_a_directory_that_replaced_another(tmp_path: Path, tree: Path) -> None:
    def act() -> Any:
        root = ShareRoot(f"{tmp_path}/share")
        placed(root, "c1", [common("m", tree)])
        tree.rename(tmp_path / "old")
        (tree / "below").mkdir(parents=True)
        placed(root, "c2", [common("m", tree), common("n", tree / "below")])
        placed(root, "c3", [common("m", tree), common("old", tmp_path / "old")])
        return [paths(root, name) for name in ("c1", "c2", "c3")]

    first, second, third = apart(act)
    assert (first["m"], second["m"]) == (["@/1", 0], ["@/2", 0])
    assert second["n"][0] == "@/2/below"
    assert third == {"m": ["@/2", 0], "old": ["@/1", 0]}, "a renamed directory has its place"


def test_outer_directory_is_placed_first_and_hard_links_are_one_file(tmp_path: Path, tree: Path) -> None:
    def act() -> Any:
        linux.mount("x", f"{tree}/below", "tmpfs", 0)
        Path(f"{tree}/below/x").mkdir()
        os.link(tree / "file", tree / "again")
        root = ShareRoot(f"{tmp_path}/share")
        inside = [common("x", tree / "below" / "x"), common("below", tree / "below")]
        placed(root, "c1", [*inside, common("all", tree), common("file", tree / "file")])
        placed(root, "c2", [common("file", tree / "file", recursive=False)])
        other = ShareRoot(f"{tmp_path}/other")
        placed(other, "c1", [common("file", tree / "file"), common("again", tree / "again")])
        return paths(root, "c1"), paths(other, "c1")

    nested, links = apart(act)
    assert {name: path for name, (path, _) in nested.items()} == {
        "all": "@/1", "below": "@/1/below", "x": "@/1/below/x", "file": "@/1/file",
    }  # fmt: skip
    assert links == {"file": ["@/1", 0], "again": ["@/1", 0]}


@pytest.mark.parametrize(("private", "readonly"), [(False, False), (True, False), (False, True)])
def test_mount_that_the_host_makes_or_ends_between_two_containers(
    tmp_path: Path, tree: Path, private: bool, readonly: bool
) -> None:
    """Where it arrives in the place of the first, that is the second's, too. Else the second has its own, and a
    warning: it would miss the mount, which it has under runc."""

    def act() -> Any:
        linux.mount(str(tree), str(tree), "", linux.BIND)
        linux.mount("none", str(tree), "", linux.SHARED)
        root = ShareRoot(f"{tmp_path}/share")

        def place(name: str) -> Any:
            shares = [common("m", tree, private=private, readonly=readonly)]
            sources = share.open_sources(shares)
            warnings = root.place(name, shares, sources)
            share.close(sources)
            [(path, _)] = paths(root, name).values()
            return path, [text.partition(", ")[2].partition(":")[0] for text in warnings]

        found = [place("c1")]
        linux.mount("x", f"{tree}/below", "tmpfs", 0)
        Path(f"{tree}/below/inside").write_text("")
        found.append(place("c2"))
        names = os.listdir(f"{root.directory}/{found[-1][0]}/below")
        looked_at = root.mounts("c2")
        found.append(place("c3"))
        linux.unmount(f"{tree}/below")
        found.append(place("c4"))
        return found, names, looked_at

    found, names, looked_at = apart(act)
    assert names == ["inside"]
    if not private and not readonly:
        assert found == [["@/1", []]] * 4
        assert looked_at == ["@/1", "@/1/below"]
        return
    warning = ["with other mounts below it"]
    assert found[:3] == [["@/1", []], ["@/2", warning], ["@/2", []]]
    assert found[3] == ["@/1", []]


def test_retired_place_is_given_to_nobody(tmp_path: Path, tree: Path) -> None:
    """The guest unmounts it meanwhile."""

    def act() -> Any:
        root = ShareRoot(f"{tmp_path}/share")
        placed(root, "c1", [common("m", tree)])
        retired = root.retire("c1")
        placed(root, "c2", [common("m", tree)])
        root.remove("c1")
        return (
            retired,
            paths(root, "c2"),
            os.listdir(f"{tmp_path}/share/@"),
            sorted(os.listdir(f"{tmp_path}/share/@/2")),
        )

    assert apart(act) == [["@/1"], {"m": ["@/2", 0]}, ["2"], ["below", "file"]]


@pytest.mark.parametrize("name", ["a\rb", "a\x0cb", "a\x85b", "a\u2028b", "a\x1cb", "a b", "a#b", "a\udcffb"])
def test_mount_points_of_any_name_are_read(tmp_path: Path, tree: Path, name: str) -> None:
    """Any user may mount something at such a path (fuse(4)), and every start reads the table of mounts."""

    def act() -> list[bool]:
        os.mkdir(f"{tree}/{name}")
        linux.mount("x", f"{tree}/{name}", "tmpfs", 0)
        ControlCgroup("/none", str(tmp_path))
        root = ShareRoot(f"{tmp_path}/share")
        placed(root, "c1", [common("m", tree)])
        points = [mount.point for mount in mountinfo.read() if mount.point.startswith(f"{tree}/")]
        return [points == [f"{tree}/{name}"]]

    assert apart(act) == [True]


def test_mount_that_fails_leaves_nothing(tmp_path: Path, tree: Path) -> None:
    def act() -> Any:
        root = ShareRoot(f"{tmp_path}/share")
        shares = [common("m", tree)]
        sources = share.open_sources(shares)
        root._exported = os.open("/dev/null", os.O_PATH)
        with pytest.raises(ConfigError, match="cannot share"):
            root.place("c1", shares, sources)
        share.close(sources)
        return [mount.point for mount in mountinfo.read() if "hidden" in mount.point]

    assert apart(act) == []


def test_directory_that_is_shared_in_two_ways_is_warned_of(tmp_path: Path, tree: Path) -> None:
    def act() -> Any:
        root = ShareRoot(f"{tmp_path}/share")
        placed(root, "c1", [common("mount1", tree / "below", readonly=True)])
        warnings = []
        for name, source in (("c2", tree / "below"), ("c3", tree)):
            wanted = [common("mount1", source)]
            warnings += root.place(name, wanted, share.open_sources(wanted))
        return warnings

    first, second = apart(act)
    assert "below, read-only: file locks, UNIX sockets" in first
    assert "and only the inner of the two was shared first" in second


def test_owners_of_a_share_are_mapped_and_written_back(tmp_path: Path, tree: Path) -> None:
    """Those of a mount below it too, where that is asked for; the source itself stays as it is."""
    target = f"{tmp_path}/share/c1"
    maps: dict[str, Any] = {"uids": [(0, 100000, 65536)], "gids": [(0, 200000, 65536)]}

    def act() -> Any:
        root = ShareRoot(f"{tmp_path}/share")
        linux.mount("none", f"{tree}/below", "tmpfs", 0, "mode=755")
        placed(
            root,
            "c1",
            [made("one", tree, **maps), made("all", tree, map_below=True, **maps), made("file", tree / "file", **maps)],
        )
        shown = {
            name: (os.stat(f"{target}/{name}").st_uid, os.stat(f"{target}/{name}").st_gid)
            for name in ("one/file", "one/below", "all/below", "file")
        }
        os.chown(f"{target}/one/file", 100005, 200006)
        return shown, [os.stat(tree / "file").st_uid, os.stat(tree / "file").st_gid]

    shown, written = apart(act)
    mapped = [100000, 200000]
    assert shown == {"one/file": mapped, "one/below": [0, 0], "all/below": mapped, "file": mapped}
    assert written == [5, 6]


@pytest.mark.parametrize(
    ("maps", "words"),
    [
        ({"uids": [(0, 1, 2), (1, 9, 2)]}, "the kernel refuses uidMappings or gidMappings: Invalid argument"),
        ({}, "its file system cannot be mounted with mappings: Invalid argument"),
    ],
)
def test_share_whose_owners_cannot_be_mapped_is_named(tree: Path, maps: dict[str, Any], words: str) -> None:
    def act() -> Any:
        linux.mount("none", f"{tree}/below", "ramfs", 0)
        wanted = {"uids": [(0, 100000, 1)], "gids": [(0, 100000, 1)]} | maps
        with pytest.raises(ConfigError) as caught:
            share.open_sources([made("x", tree / "below", **wanted)])
        return caught.value.sentence()

    sentence = apart(act)
    assert f"cannot map the owners of {tree}/below: {words}" in sentence


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
def test_guest_looks_at_inner_mounts_that_cannot_hang(table: list[tuple[str, str]], expected: list[str]) -> None:
    assert share.inner(table) == expected


def test_mounts_of_a_container_are_known_until_it_is_removed(tmp_path: Path, tree: Path) -> None:
    def act() -> list[list[str]]:
        linux.mount("none", f"{tree}/below", "tmpfs", 0)
        root = ShareRoot(f"{tmp_path}/share")
        placed(root, "c1", [made("all", tree), made("flat", tree, recursive=False), made("file", tree / "file")])
        found = [root.mounts("c1"), root.mounts("c2")]
        root.remove("c1")
        return [*found, root.mounts("c1")]

    assert apart(act) == [["c1/all", "c1/flat", "c1/all/below"], [], []]


def layers(tmp_path: Path) -> Overlay:
    """An overlay with names that its options could not have unescaped."""
    lower, upper, work = (tmp_path / f"{name},:\\" for name in ("lower", "upper", "work"))
    other = tmp_path / "other"
    for directory in (lower, other, upper, work):
        directory.mkdir()
    (other / "deep").write_text("")
    (lower / "file").write_text("below")
    (lower / "removed").write_text("")
    return Overlay(lowers=(str(lower), str(other)), upper=str(upper), work=str(work))


def over(name: str, overlay: Overlay, *, readonly: bool = False) -> Share:
    return Share(
        name=name, source=overlay.name, is_dir=True, readonly=readonly, private=True, recursive=False, common=True,
        overlay=overlay,
    )  # fmt: skip


def on_disk(act: Callable[[str], Any]) -> Any:
    """``act`` with a directory that can have an upper layer: this machine's files may be an overlay themselves."""

    def mount_and_act() -> Any:
        linux.mount("test", "/mnt", "tmpfs", 0)
        return act("/mnt")

    return apart(mount_and_act)


def test_overlay_is_one_for_all_containers_and_ends_with_the_last() -> None:
    """What is written is in the upper directory on the host; nothing of the overlay is seen on the host."""

    def act(directory: str) -> Any:
        wanted = layers(Path(directory))
        root = ShareRoot(f"{directory}/share")
        placed(root, "c1", [over("mount1", wanted), over("mount2", wanted)])
        sources = share.open_sources([over("mount5", wanted)], root.overlays)
        root.place("c2", [over("mount5", wanted)], sources)
        share.close(sources)
        places = [paths(root, name) for name in ("c1", "c2")]
        place = f"{root.directory}/@/1"
        Path(place, "file").write_text("above")
        os.unlink(f"{place}/removed")
        seen = sorted(os.listdir(place))
        root.remove("c1")
        Path(place, "later").write_text("")
        kept = root.overlays == [wanted.key], list(mounts(place))
        root.remove("c2")
        upper = Path(wanted.upper)
        removed = stat.S_ISCHR((upper / "removed").lstat().st_mode)
        # The layers are nobody's any more.
        os.close(share.open_sources([over("mount1", wanted)])[0].tree)
        lower = Path(wanted.lowers[0], "file").read_text()
        return places, seen, kept, root.overlays, sorted(os.listdir(upper)), removed, lower

    places, seen, kept, left, upper, removed, lower = on_disk(act)
    assert places == [{"mount1": ["@/1", 0], "mount2": ["@/1", 0]}, {"mount5": ["@/1", 0]}]
    assert seen == ["deep", "file"]
    assert (kept, left, upper, removed, lower) == ([True, [""]], [], ["file", "later", "removed"], True, "below")


def test_overlay_whose_last_user_went_meanwhile_is_refused() -> None:
    def act(directory: str) -> Any:
        wanted = layers(Path(directory))
        root = ShareRoot(f"{directory}/share")
        with pytest.raises(ConfigError, match="the container that has this overlay was deleted"):
            root.place("c2", [over("mount5", wanted)], share.open_sources([over("mount5", wanted)], [wanted.key]))
        return True

    assert on_disk(act)


def test_read_only_overlay_has_its_layers_and_takes_nothing() -> None:
    def act(directory: str) -> Any:
        made = layers(Path(directory))
        root = ShareRoot(f"{directory}/share")
        placed(root, "c1", [over("mount1", Overlay(lowers=(made.upper, *made.lowers)), readonly=True)])
        options, _ = mounts(root.directory)["/@/1"]
        with pytest.raises(OSError, match="Read-only"):
            Path(root.directory, "@/1/new").write_text("")
        return sorted(os.listdir(f"{root.directory}/@/1")), "ro" in options

    assert on_disk(act) == [["deep", "file", "removed"], True]


def test_overlay_that_cannot_be_is_refused_by_the_layer() -> None:
    """A layer that is missing, is a file, or that a link leads out to the kernel's files, and one too many."""

    def act(directory: str) -> Any:
        good = layers(Path(directory))
        Path(directory, "proc").mkdir()
        linux.mount("proc", f"{directory}/proc", "proc", 0)
        Path(directory, "file").touch()
        cases: list[tuple[dict[str, Any], str]] = [
            ({"lowers": (f"{directory}/none",)}, "none: no such file"),
            ({"upper": f"{directory}/file"}, "file: not a directory"),
            ({"work": f"{directory}/none"}, "none: no such file"),
            ({"lowers": (f"{directory}/proc",)}, "kernel, proc"),
            ({"lowers": (directory,) * 200}, "200 lower directories are more than the kernel takes"),
            ({"options": (("index", "never"),)}, "cannot mount the overlay on "),
            ({"work": f"{directory}/upper,:\\"}, "cannot mount the overlay on "),
        ]
        before = len(os.listdir("/proc/self/fd"))
        for changes, words in cases:
            wanted = Overlay(**{"lowers": good.lowers, "upper": good.upper, "work": good.work, **changes})
            with pytest.raises(ConfigError) as caught:
                share.open_sources([over("mount1", wanted)])
            assert words in caught.value.message, (changes, caught.value.message)
        return len(os.listdir("/proc/self/fd")) - before, os.getcwd() != "/proc/self/fd"

    assert on_disk(act) == [0, True]
