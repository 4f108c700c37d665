"""Templates that are not used: altered, damaged, too large, or in reach of another user."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hawse.errors import HostError
from hawse.vm import memory, template
from hawse.vm.arguments import VmShape

DIGEST = "d" * 64
SHAPE = VmShape(
    qemu="/q", accel="tcg", memory_mib=1, cpus=2, kernel="/k", initrd="/i", kernel_append="", bridges=[], share="9p",
    machine_properties=frozenset({"vmport", "hpet"}),
)  # fmt: skip
MIB = 1024 * 1024


class Store:
    """A cache with one template, and its files."""

    def __init__(self, path: Path, state: bytes = b"state") -> None:
        self.cache = str(path)
        self.templates = path / "templates"
        self.directory = self.templates / DIGEST
        self.write(state)

    def write(self, state: bytes = b"state", digest: str = DIGEST) -> None:
        draft = template.begin(self.cache, digest, SHAPE)
        assert draft is not None
        ram = memory.make(MIB)
        os.pwrite(ram, b"memory", 4096)
        draft.fill(ram, state)
        os.close(ram)
        draft.commit()
        draft.close()

    def find(self, *, read: bool = True) -> template.Template:
        found = template.find(self.cache, DIGEST, read=read)
        assert found is not None
        return found

    def refusal(self, *, read: bool = True) -> str:
        with pytest.raises(HostError) as caught:
            template.find(self.cache, DIGEST, read=read)
        return caught.value.message

    def manifest(self) -> dict[str, Any]:
        return dict(json.loads((self.directory / "manifest.json").read_text()))

    def resize(self, name: str, size: int) -> None:
        """Change a file and its size in the manifest; a hole takes no space."""
        os.truncate(self.directory / name, size)
        manifest = self.manifest()
        manifest["files"][name]["size"] = size
        (self.directory / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def test_a_template_has_its_shape_and_time(store: Store) -> None:
    found = store.find()
    assert abs(found.created - time.time()) < 600
    assert found.shape["machine_properties"] == ["hpet", "vmport"]
    assert (found.shape["memory_mib"], found.shape["share"], found.used) == (1, "9p", memory.PIECE)
    assert os.stat(store.templates).st_mode & 0o777 == 0o700
    assert sorted(os.listdir(store.directory)) == ["checked", "manifest.json", "memory", "state"]


@pytest.mark.parametrize("name", ["memory", "state"])
def test_altered_content_is_found_where_it_is_read(store: Store, name: str) -> None:
    path = store.directory / name
    path.write_bytes(path.read_bytes()[:-1] + b"X")
    assert store.find(read=False).digest == DIGEST
    assert store.refusal() == f"the template {DIGEST[:12]} is damaged: {path} was altered"


def test_content_is_read_once_for_each_change_of_a_file(store: Store) -> None:
    """Its stamps are noted, and what they are noted of is trusted; reading a gigabyte takes a second."""
    manifest = store.manifest()
    manifest["files"]["memory"]["digest"] = "0" * 64
    (store.directory / "manifest.json").write_text(json.dumps(manifest))
    store.find()
    os.utime(store.directory / "memory")
    assert store.refusal().endswith("memory was altered")


@pytest.mark.parametrize("noted", [None, "", "{", "[]"])
def test_stamps_that_are_missing_or_garbled_are_made_again(store: Store, noted: str | None) -> None:
    path = store.directory / "checked"
    before = path.read_text()
    os.unlink(path)
    if noted is not None:
        path.write_text(noted)
    store.find()
    assert path.read_text() == before


@pytest.mark.parametrize("name", ["memory", "state", "manifest.json"])
def test_a_file_that_is_missing_is_named(store: Store, name: str) -> None:
    os.unlink(store.directory / name)
    assert store.refusal() == f"the template {DIGEST[:12]} is damaged: {store.directory}/{name} is missing"


def test_a_file_that_cannot_be_read_is_named(store: Store) -> None:
    os.unlink(store.directory / "manifest.json")
    os.mkdir(store.directory / "manifest.json")
    assert store.refusal().startswith(f"the template {DIGEST[:12]} cannot be read: Is a directory: ")


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: None,
        lambda manifest: manifest["files"]["state"].pop("digest"),
        lambda manifest: manifest["files"]["memory"].pop("size"),
        lambda manifest: manifest["files"].pop("memory"),
        lambda manifest: manifest.pop("used"),
        lambda manifest: manifest.update(files=[]),
    ],
)
def test_a_damaged_manifest_is_reported(store: Store, damage: Callable[[dict[str, Any]], object]) -> None:
    manifest = store.manifest()
    damage(manifest)
    text = json.dumps(manifest)
    (store.directory / "manifest.json").write_text(text[:-1] if manifest == store.manifest() else text)
    assert store.refusal() == f"the template {DIGEST[:12]} is damaged: {store.directory}/manifest.json"


def test_a_state_has_a_largest_size_and_memory_has_none(store: Store) -> None:
    """The state is read as a whole, by a monitor that has little memory to spare."""
    most = 64 * MIB
    store.resize("memory", 2 * most)
    store.resize("state", most)
    assert store.find(read=False).digest == DIGEST
    store.resize("state", most + 1)
    assert f"state has {most + 1} bytes" in store.refusal(read=False)


@pytest.mark.parametrize("name", ["memory", "state"])
def test_a_file_of_another_size_is_refused_without_reading_it(store: Store, name: str) -> None:
    size = os.path.getsize(store.directory / name)
    with open(store.directory / name, "ab") as file:
        file.write(b"x")
    assert f"/{name} has {size + 1} bytes, not {size}" in store.refusal(read=False)


def test_a_damaged_template_is_replaced(store: Store) -> None:
    os.truncate(store.directory / "state", 1)
    store.write(b"another state")
    assert Path(store.find().state).read_bytes() == b"another state"


@pytest.mark.parametrize("place", ["templates", "directory"])
@pytest.mark.parametrize(
    ("mode", "words"), [(0o755, ""), (0o720, "others may write to"), (0o702, "others may write to"), (0o766, "others")]
)
def test_a_directory_that_others_may_write_to_is_not_used(store: Store, place: str, mode: int, words: str) -> None:
    """A template is a VM's whole memory: its writer runs in every container that is restored from it."""
    path = getattr(store, place)
    os.chmod(path, mode)
    if not words:
        assert template.is_ours(store.cache)
        assert template.is_ours(store.cache, DIGEST)
        return
    with pytest.raises(HostError, match=f"templates are not used: {words}"):
        template.begin(store.cache, DIGEST, SHAPE) if place == "templates" else store.find()


def test_a_directory_of_another_user_is_not_used(store: Store) -> None:
    os.chown(store.directory, 12345, -1)
    assert store.refusal() == (f"templates are not used: {store.directory} belongs to the user 12345 and has mode 0700")


def test_what_is_no_directory_is_not_used(store: Store, tmp_path: Path) -> None:
    """Not even a link to one."""
    os.rename(store.directory, tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", store.directory)
    assert store.refusal() == f"templates are not used: {store.directory} is no directory"
    [(name, error)] = template.list_all(store.cache)
    assert (name, isinstance(error, HostError)) == (DIGEST, True)


def test_a_template_that_was_removed_meanwhile_cannot_be_touched(store: Store) -> None:
    found = store.find()
    template.remove(store.cache, DIGEST)
    template.touch(found)
    assert template.list_all(store.cache) == []
    assert template.list_all(f"{store.cache}/none") == []


def test_a_template_without_stamps_is_the_oldest(store: Store) -> None:
    os.unlink(store.directory / "checked")
    for number in range(template.KEPT):
        store.write(digest=f"{number:064x}")
    names = [name for name, _ in template.list_all(store.cache)]
    assert names == [f"{number:064x}" for number in range(template.KEPT)]


def test_a_lock_is_not_followed_through_a_link(store: Store, tmp_path: Path) -> None:
    os.unlink(store.templates / f".{DIGEST}.lock")
    os.symlink(tmp_path / "target", store.templates / f".{DIGEST}.lock")
    with pytest.raises(OSError, match="Too many levels"):
        template.begin(store.cache, DIGEST, SHAPE)
    assert not os.path.exists(tmp_path / "target")
