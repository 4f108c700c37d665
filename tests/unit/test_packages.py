"""Debian packages: which are fetched, when the package lists are read again, and what is unpacked where."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hawse.errors import HostError
from hawse.vm.packages import Package, fetch, unpack
from tests.support.debs import Entry, Mirror, directory, file, link, make_deb

A, B = "liba_1.0-2_amd64.deb", "tool_2%3a3_all.deb"
INSTALL = "install --print-uris tool"
DOWNLOAD = "install --download-only --yes tool"


@dataclass
class Apt:
    """A machine with package lists, and a mirror where `tool` needs liba."""

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
    assert apt.progress[1:] == ["downloading 1 packages"]


def test_a_package_of_another_size_is_downloaded_again(apt: Apt) -> None:
    """A download that was cut short is not used."""
    apt.fetch("tool")
    Path(apt.mirror.path, A).write_text("a new build of it")
    os.unlink(f"{apt.cache}/packages/{A}")
    Path(apt.cache, "packages", "partial", A).write_text("")
    assert apt.contents() == [b"a new build of it", B.encode()]
    assert apt.mirror.calls().count(DOWNLOAD) == 2


@pytest.mark.parametrize(
    ("name", "updates"),
    [("", 1), ("lock", 1), ("m_Packages", 0), ("m_Packages.lz4", 0), ("m_InRelease", 1)],
)
def test_package_lists_are_read_where_the_machine_has_none(apt: Apt, name: str, updates: int) -> None:
    for other in os.listdir(apt.lists):
        os.unlink(f"{apt.lists}/{other}")
    if name:
        Path(apt.lists, name).touch()
    apt.fetch("tool")
    assert apt.mirror.calls().count("update") == updates
    assert apt.progress[:-1] == ["reading the package lists"] * updates


def test_package_lists_that_are_outdated_are_read_again(apt: Apt) -> None:
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


def test_a_package_that_brings_nothing_is_an_error(apt: Apt) -> None:
    with pytest.raises(HostError, match="apt finds nothing to fetch for none"):
        apt.fetch("none")


def test_a_machine_without_apt_is_reported(apt: Apt, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match="cannot run apt-get: No such file") as caught:
        apt.fetch("tool")
    assert caught.value.hint == "the image is built on Debian"


def package(path: Path, *entries: Entry) -> Package:
    return Package("p", "1", "", make_deb(str(path), entries))


def tree(path: Path) -> dict[str, str]:
    """Files of a tree with their content, links with an arrow, directories with a slash."""
    found = {}
    for parent, directories, names in os.walk(path):
        for name in [*directories, *names]:
            full = Path(parent, name)
            key = str(full.relative_to(path))
            if full.is_symlink():
                found[key] = f"-> {os.readlink(full)}"
            elif full.is_dir():
                found[f"{key}/"] = ""
            else:
                found[key] = full.read_text()
    return found


MERGED = {name: f"-> usr/{name}" for name in ("bin", "sbin", "lib", "lib64")}
EMPTY = {**MERGED, "usr/": "", **{f"usr/{name}/": "" for name in MERGED}}


def test_no_package_makes_an_empty_tree_of_merged_usr(tmp_path: Path) -> None:
    for _ in range(2):
        unpack((), str(tmp_path))
        assert tree(tmp_path) == EMPTY


def test_files_of_packages_are_merged_into_usr_and_kept_inside(tmp_path: Path) -> None:
    one = package(
        tmp_path / "one.deb", directory("./"), directory("./bin"), file("./bin/sh", b"shell", 0o755),
        directory("./lib"), directory("./etc"), link("./etc/sh", "/bin/sh"), link("./bin/bash", "./bin/sh", hard=True),
        file("../evil", b"e"),
    )  # fmt: skip
    two = package(tmp_path / "two.deb", file("./usr/lib/x/y", b"y"))
    unpack([one, two], f"{tmp_path}/into")
    assert tree(tmp_path / "into") == EMPTY | {
        "etc/": "", "etc/sh": "-> /bin/sh", "usr/bin/sh": "shell", "usr/bin/bash": "shell", "usr/lib/x/": "",
        "usr/lib/x/y": "y",
    }  # fmt: skip
    assert os.path.samefile(tmp_path / "into/usr/bin/sh", tmp_path / "into/usr/bin/bash")
    assert not os.path.exists(tmp_path / "evil")


def test_modes_and_owners_are_the_packages(tmp_path: Path) -> None:
    entry, content = file("./usr/bin/su", b"su", 0o4755)
    entry.uid, entry.gid = 12, 34
    unpack([package(tmp_path / "one.deb", (entry, content))], f"{tmp_path}/into")
    status = os.stat(tmp_path / "into/usr/bin/su")
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o4755, 12, 34)


def test_only_wanted_files_are_unpacked(tmp_path: Path) -> None:
    names = [f"./usr/share/doc/{name}" for name in ("a", "b")]
    one = package(tmp_path / "one.deb", *(file(name, b"") for name in names))
    asked: list[str] = []

    def wanted(name: str) -> bool:
        asked.append(name)
        return name.endswith("b")

    unpack([one], f"{tmp_path}/into", wanted=wanted)
    assert asked == ["usr/share/doc/a", "usr/share/doc/b"]
    assert os.listdir(tmp_path / "into/usr/share/doc") == ["b"]


@pytest.mark.parametrize("size", [0, 300, 3000, -1000])
def test_a_package_that_is_cut_short_is_named(tmp_path: Path, size: int) -> None:
    """dpkg-deb then writes nothing, a part of a file, or all but the zeros at the end of an archive."""
    one = package(tmp_path / "one.deb", file("./usr/bin/x", bytes(9000)))
    os.truncate(one.path, size % os.path.getsize(one.path))
    with pytest.raises(HostError, match=r"cannot unpack \S+/one\.deb") as caught:
        unpack([one], f"{tmp_path}/into")
    assert caught.value.hint == "delete it and try again"
