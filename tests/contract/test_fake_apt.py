"""fake_apt.py behaves as apt-get does, for the commands that hawse runs."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from hawse.errors import HostError
from hawse.vm.image.packages import Package, fetch
from tests.support.debs import Mirror, file, make_deb

#: tool depends on liba.
DEBS = {"liba": "liba_1.0_all.deb", "tool": "tool_2.0_all.deb"}


@dataclass(frozen=True)
class Source:
    """A mirror with both packages: their directory, apt's options for it, and the directory of apt's lists."""

    directory: Path
    options: list[str]
    lists: Path
    cache: str
    progress: list[str]

    def fetch(self, *names: str) -> tuple[Package, ...]:
        lists, cache = str(self.lists), self.cache
        return fetch(names, cache=cache, progress=self.progress.append, options=self.options, lists=lists)


def packages_file(directory: Path) -> str:
    """The index of a repository (deb822(5))."""
    text = ""
    for name, deb in DEBS.items():
        content = (directory / deb).read_bytes()
        text += f"Package: {name}\nVersion: {deb.split('_')[1]}\nArchitecture: all\nFilename: ./{deb}\n"
        text += "Depends: liba\n" if name == "tool" else ""
        text += f"Size: {len(content)}\nSHA256: {hashlib.sha256(content).hexdigest()}\n\n"
    return text


@pytest.fixture(params=["apt", "fake"])
def source(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    directory, lists = tmp_path / "mirror", tmp_path / "lists"
    for path in (directory, lists / "partial"):
        path.mkdir(parents=True)
    mirror = Mirror(str(directory), monkeypatch.setenv) if request.param == "fake" else None
    for name, deb in DEBS.items():
        make_deb(str(directory / deb), [file(f"./usr/{name}", name.encode())])
    if mirror is not None:
        mirror.offer({"tool": DEBS.values(), "liba": [DEBS["liba"]]})
        (lists / "mirror_Packages").touch()
    else:
        (directory / "Packages").write_text(packages_file(directory))
    # apt copies packages of "copy:" to its archives, as it does with downloaded ones.
    (tmp_path / "sources").write_text(f"deb [trusted=yes] copy:{directory} ./\n")
    options = [
        f"Dir::Etc::sourcelist={tmp_path}/sources", "Dir::Etc::sourceparts=-", f"Dir::State::lists={lists}",
    ]  # fmt: skip
    return Source(directory, options, lists, f"{tmp_path}/cache", [])


def test_package_is_fetched_with_its_dependencies(source: Source) -> None:
    fetched = source.fetch("tool")
    digests = [hashlib.sha256((source.directory / deb).read_bytes()).hexdigest() for deb in DEBS.values()]
    assert [(package.name, package.version, package.sha256) for package in fetched] == [
        ("liba", "1.0", digests[0]), ("tool", "2.0", digests[1]),
    ]  # fmt: skip
    for package, deb in zip(fetched, DEBS.values(), strict=True):
        assert Path(package.path).read_bytes() == (source.directory / deb).read_bytes()
    assert source.progress[-1] == "downloading 2 packages"


def test_fetched_packages_are_not_downloaded_again(source: Source) -> None:
    first = source.fetch("tool")
    source.progress.clear()
    assert source.fetch("tool") == first
    assert source.progress == []
    os.truncate(first[0].path, 3)
    assert source.fetch("tool") == first
    assert source.progress == ["downloading 1 package"]


def test_package_that_does_not_exist_is_an_error(source: Source) -> None:
    with pytest.raises(HostError):
        source.fetch("nothing")
    assert source.progress[-1] == "reading the package lists again"
