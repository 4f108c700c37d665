"""Debian packages: which ones are fetched, when the package lists are updated, and where files are unpacked."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hawse.errors import HostError
from hawse.vm.image.packages import Package, fetch, unpack
from tests.support.debs import Entry, Mirror, directory, file, link, make_deb

A, B = "liba_1.0-2_amd64.deb", "tool_2%3a3_all.deb"
INSTALL = "install --print-uris tool"
DOWNLOAD = "install --download-only --yes tool"


@dataclass
class Apt:
    """A host with package lists, and a mirror where `tool` depends on liba."""

    mirror: Mirror
    cache: str
    lists: str
    progress: list[str] = field(default_factory=list)

    def fetch(self, *names: str) -> tuple[Package, ...]:
        return fetch(names, cache=self.cache, progress=self.progress.append, lists=self.lists)

    def contents(self) -> list[bytes]:
        return [Path(package.path).read_bytes() for package in self.fetch("tool")]


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Apt:
    mirror = Mirror(f"{tmp_path}/mirror", monkeypatch.setenv)
    for name in (A, B):
        Path(mirror.path, name).write_text(name)
    mirror.offer({"tool": [B, A], "none": []})
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "mirror_dists_bookworm_main_binary-amd64_Packages").touch()
    return Apt(mirror, f"{tmp_path}/cache", f"{tmp_path}/lists")


def test_packages_are_downloaded_once_and_sorted_by_name(apt: Apt) -> None:
    fetched = apt.fetch("tool")
    digests = [hashlib.sha256(name.encode()).hexdigest() for name in (A, B)]
    assert fetched == (
        Package("liba", "1.0-2", digests[0], f"{apt.cache}/packages/{A}"),
        Package("tool", "2%3a3", digests[1], f"{apt.cache}/packages/{B}"),
    )
    assert apt.fetch("tool") == fetched
    assert apt.mirror.calls() == [INSTALL, DOWNLOAD, INSTALL]
    assert apt.progress == ["downloading 2 packages"]


def test_only_missing_packages_count_as_downloads(apt: Apt) -> None:
    apt.fetch("tool")
    os.unlink(f"{apt.cache}/packages/{B}")
    assert apt.contents() == [A.encode(), B.encode()]
    assert apt.progress[1:] == ["downloading 1 package"]


def test_cached_package_of_the_wrong_size_is_downloaded_again(apt: Apt) -> None:
    """A truncated download is not used."""
    apt.fetch("tool")
    Path(apt.mirror.path, A).write_text("a new build of it")
    os.unlink(f"{apt.cache}/packages/{A}")
    Path(apt.cache, "packages", "partial", A).write_text("")
    assert apt.contents() == [b"a new build of it", B.encode()]
    assert apt.mirror.calls().count(DOWNLOAD) == 2


def test_cached_package_with_other_content_is_downloaded_again(apt: Apt) -> None:
    apt.fetch("tool")
    path = Path(apt.cache, "packages", A)
    path.write_bytes(b"X" * path.stat().st_size)
    assert apt.contents() == [A.encode(), B.encode()]
    assert apt.progress[1:] == ["downloading 1 package"]


@pytest.mark.parametrize("times", [1, 2])
def test_download_that_does_not_match_the_lists_is_an_error(apt: Apt, times: int) -> None:
    """After the first failure the lists are updated and the package is downloaded again."""
    Path(apt.mirror.path, "tampered").write_text(f"{A} {times}")
    if times == 1:
        assert apt.contents() == [A.encode(), B.encode()]
        return
    with pytest.raises(HostError) as caught:
        apt.fetch("tool")
    expected, actual = (hashlib.sha256(text.encode()).hexdigest() for text in (A, f"X{A[1:]}"))
    assert caught.value.message == (
        f"the package {A} is not the one in apt's lists: its SHA256 is {actual}, not {expected}"
    )
    assert (
        caught.value.hint
        == "run `apt-get update` and try again; if the error stays, use another mirror in apt's sources"
    )
    assert os.listdir(f"{apt.cache}/packages/partial") == []
    assert not os.path.exists(f"{apt.cache}/packages/{A}")


def test_package_that_is_missing_after_the_download_is_an_error(apt: Apt) -> None:
    Path(apt.mirror.path, "lost").touch()
    with pytest.raises(
        HostError, match=r"tool_2%3a3_all\.deb is not the one in apt's lists: its SHA256 is missing, not"
    ):
        apt.fetch("tool")


def test_lists_without_sha256_are_an_error(apt: Apt) -> None:
    with pytest.raises(HostError, match=r"apt's lists have no SHA256 of the package \S+, but MD5Sum:") as caught:
        fetch(["tool"], cache=apt.cache, progress=print, lists=apt.lists, options=["Acquire::ForceHash=MD5Sum"])
    assert caught.value.hint


@pytest.mark.parametrize("mode", [0o755, 0o700])
def test_user_apt_can_reach_the_download_directory(apt: Apt, mode: int) -> None:
    """Otherwise apt runs its network methods as root. A cache that others cannot search is mounted elsewhere."""
    os.makedirs(apt.cache)
    os.chmod(apt.cache, mode)
    before = os.listdir("/var/cache/apt/archives")
    assert apt.contents() == [A.encode(), B.encode()]
    last_call = json.loads(Path(apt.mirror.path, "seen").read_text())
    assert last_call["closed"] == []
    assert [name for name in last_call["options"] if name.startswith("APT::Sandbox")] == []
    assert os.listdir("/var/cache/apt/archives") == before


def test_cache_that_others_may_write_to_is_refused(apt: Apt) -> None:
    os.makedirs(apt.cache)
    os.chmod(apt.cache, 0o777)
    with pytest.raises(HostError, match=f"others may write to {apt.cache}, "):
        apt.fetch("tool")


@pytest.mark.parametrize(
    ("name", "updates"),
    [("", 1), ("lock", 1), ("m_Packages", 0), ("m_Packages.lz4", 0), ("m_InRelease", 1)],
)
def test_missing_package_lists_are_downloaded(apt: Apt, name: str, updates: int) -> None:
    for other in os.listdir(apt.lists):
        os.unlink(f"{apt.lists}/{other}")
    if name:
        Path(apt.lists, name).touch()
    apt.fetch("tool")
    assert apt.mirror.calls().count("update") == updates
    assert apt.progress[:-1] == ["reading the package lists"] * updates


def test_outdated_package_lists_are_updated(apt: Apt) -> None:
    apt.mirror.state("outdated")
    assert len(apt.fetch("tool")) == 2
    assert apt.mirror.calls() == [INSTALL, "update", INSTALL, DOWNLOAD]
    assert apt.progress[0] == "reading the package lists again"


def test_the_second_failure_of_apt_is_reported_with_its_output(apt: Apt) -> None:
    apt.mirror.state("broken")
    with pytest.raises(HostError, match="apt cannot fetch the packages") as caught:
        apt.fetch("tool")
    assert (caught.value.hint, caught.value.evidence) == ("run `apt-get update`", "E: 404  Not Found\n")
    assert apt.mirror.calls() == [INSTALL, "update", INSTALL]


def test_empty_list_of_packages_to_fetch_is_an_error(apt: Apt) -> None:
    with pytest.raises(HostError, match="apt finds no package to fetch for none"):
        apt.fetch("none")


def test_missing_apt_is_reported(apt: Apt, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match="cannot run apt-get: No such file") as caught:
        apt.fetch("tool")
    assert caught.value.hint == "the image is built on Debian"


def package(path: Path, *entries: Entry) -> Package:
    return Package("p", "1", "", make_deb(str(path), entries))


def tree(path: Path) -> dict[str, str]:
    """The files of a tree: regular files with their content, links with an arrow, directories with a slash."""
    entries = {}
    for parent, directories, names in os.walk(path):
        for name in [*directories, *names]:
            full = Path(parent, name)
            key = str(full.relative_to(path))
            if full.is_symlink():
                entries[key] = f"-> {os.readlink(full)}"
            elif full.is_dir():
                entries[f"{key}/"] = ""
            else:
                entries[key] = full.read_text()
    return entries


MERGED = {name: f"-> usr/{name}" for name in ("bin", "sbin", "lib", "lib64")}
EMPTY = {**MERGED, "usr/": "", **{f"usr/{name}/": "" for name in MERGED}}


def test_no_packages_give_an_empty_merged_usr_tree(tmp_path: Path) -> None:
    for _ in range(2):
        unpack((), str(tmp_path))
        assert tree(tmp_path) == EMPTY


def test_files_of_packages_are_merged_into_usr_and_kept_inside(tmp_path: Path) -> None:
    one = package(
        tmp_path / "one.deb", directory("./"), directory("./bin"), file("./bin/sh", b"shell", 0o755),
        directory("./lib"), directory("./etc"), link("./etc/sh", "/bin/sh"), link("./bin/bash", "./bin/sh", hard=True),
    )  # fmt: skip
    two = package(tmp_path / "two.deb", file("./usr/lib/x/y", b"y"))
    unpack([one, two], f"{tmp_path}/into")
    assert tree(tmp_path / "into") == EMPTY | {
        "etc/": "", "etc/sh": "-> /bin/sh", "usr/bin/sh": "shell", "usr/bin/bash": "shell", "usr/lib/x/": "",
        "usr/lib/x/y": "y",
    }  # fmt: skip
    assert os.path.samefile(tmp_path / "into/usr/bin/sh", tmp_path / "into/usr/bin/bash")


def node(name: str, kind: bytes) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.devmajor, entry.devminor = kind, 1, 3
    return entry


OUT = "a path that leaves the tree"
THROUGH = "a path through a symbolic link that leaves the tree"
NODE = "a device node or a FIFO"
HOSTILE: dict[str, tuple[list[Entry], str, str]] = {
    "absolute name": ([file("/etc/evil", b"")], "/etc/evil", OUT),
    "name above the tree": ([file("../evil", b"")], "../evil", OUT),
    "name above the tree from within": ([file("./a/../../evil", b"")], "./a/../../evil", OUT),
    "name with .. that stays inside": ([file("./a/../evil", b"")], "./a/../evil", OUT),
    "directory above the tree": ([directory("../evil")], "../evil", OUT),
    "link above the tree": ([link("../evil", "/")], "../evil", OUT),
    "hard link to an absolute name": ([link("./evil", "/etc/passwd", hard=True)], "/etc/passwd", OUT),
    "hard link above the tree": ([link("./evil", "../victim/file", hard=True)], "../victim/file", OUT),
    "file through an absolute link": ([link("./a", "{victim}"), file("./a/evil", b"")], "a/evil", THROUGH),
    "file through a relative link": ([link("./a", "../victim"), file("./a/evil", b"")], "a/evil", THROUGH),
    "file through a link of a link": (
        [link("./usr/b", "../../victim"), link("./a", "usr/b"), file("./a/evil", b"")], "a/evil", THROUGH,
    ),
    "file deep through a link": ([link("./a", "{victim}"), file("./a/b/c/evil", b"")], "a/b/c/evil", THROUGH),
    "directory through a link": ([link("./a", "{victim}"), directory("./a/evil")], "a/evil", THROUGH),
    "link through a link": ([link("./a", "{victim}"), link("./a/evil", "/")], "a/evil", THROUGH),
    "hard link through a link": ([link("./a", "{victim}"), link("./evil", "./a/file", hard=True)], "a/file", THROUGH),
    "file through a link in /usr": ([link("./lib/a", "{victim}"), file("./usr/lib/a/evil", b"")], "usr/lib/a/evil",
                                    THROUGH),
    "character device": ([node("./dev/null", tarfile.CHRTYPE)], "./dev/null", NODE),
    "block device": ([node("./dev/sda", tarfile.BLKTYPE)], "./dev/sda", NODE),
    "FIFO": ([node("./pipe", tarfile.FIFOTYPE)], "./pipe", NODE),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archive_is_refused(tmp_path: Path, case: str) -> None:
    """root unpacks the tree: nothing outside it is created, changed or linked to."""
    entries, name, why = HOSTILE[case]
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("content")
    for entry in entries:
        if isinstance(entry, tarfile.TarInfo):
            entry.linkname = entry.linkname.replace("{victim}", str(victim))
    one = package(tmp_path / "one.deb", *entries)
    with pytest.raises(HostError) as caught:
        unpack([one], f"{tmp_path}/into")
    assert caught.value.message == f"cannot unpack {one.path}: {name!r} is {why}"
    assert caught.value.hint == "use another mirror, and report the package"
    assert tree(victim) == {"file": "content"}
    assert os.stat(victim / "file").st_nlink == 1
    assert not os.path.lexists(tmp_path / "evil")
    assert not os.path.lexists("/etc/evil")


def test_file_at_the_path_of_a_symlink_does_not_follow_it(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("content")
    one = package(tmp_path / "one.deb", link("./a", f"{tmp_path}/victim"), file("./a", b"evil"))
    unpack([one], f"{tmp_path}/into")
    assert (tmp_path / "victim").read_text() == "content"


def test_symlinks_inside_the_tree_are_followed(tmp_path: Path) -> None:
    one = package(tmp_path / "one.deb", directory("./usr/a"), link("./usr/b", "a"), file("./usr/b/x", b"x"))
    unpack([one], f"{tmp_path}/into")
    assert tree(tmp_path / "into")["usr/a/x"] == "x"


def test_modes_and_owners_of_packages_are_kept(tmp_path: Path) -> None:
    entry, content = file("./usr/bin/su", b"su", 0o4755)
    entry.uid, entry.gid = 12, 34
    unpack([package(tmp_path / "one.deb", (entry, content))], f"{tmp_path}/into")
    status = os.stat(tmp_path / "into/usr/bin/su")
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o4755, 12, 34)


def test_only_wanted_files_are_unpacked(tmp_path: Path) -> None:
    names = [f"./usr/share/doc/{name}" for name in ("a", "b")]
    one = package(tmp_path / "one.deb", *(file(name, b"") for name in names))
    paths: list[str] = []

    def ends_with_b(name: str) -> bool:
        paths.append(name)
        return name.endswith("b")

    unpack([one], f"{tmp_path}/into", select=ends_with_b)
    assert paths == ["usr/share/doc/a", "usr/share/doc/b"]
    assert os.listdir(tmp_path / "into/usr/share/doc") == ["b"]


@pytest.mark.parametrize("size", [0, 300, 3000, -1000])
def test_truncated_package_is_named_in_the_error(tmp_path: Path, size: int) -> None:
    """dpkg-deb then writes nothing, a part of a file, or everything except the zeros at the end of the archive."""
    one = package(tmp_path / "one.deb", file("./usr/bin/x", bytes(9000)))
    os.truncate(one.path, size % os.path.getsize(one.path))
    with pytest.raises(HostError, match=r"cannot unpack \S+/one\.deb") as caught:
        unpack([one], f"{tmp_path}/into")
    assert caught.value.hint == "delete it and try again"
