"""Templates that are not used: altered, damaged, too large, or writable by another user."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hawse.errors import HostError
from hawse.vm import ram_file, templates
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
        draft = templates.begin(self.cache, digest, SHAPE)
        assert draft is not None
        ram = ram_file.make(MIB)
        os.pwrite(ram, b"memory", 4096)
        draft.fill(ram, state)
        os.close(ram)
        draft.commit()
        draft.close()

    def find(self, *, read: bool = True) -> templates.Template:
        stored = templates.find(self.cache, DIGEST, read=read)
        assert stored is not None
        return stored

    def refusal(self, *, read: bool = True) -> str:
        with pytest.raises(HostError) as caught:
            templates.find(self.cache, DIGEST, read=read)
        return caught.value.message

    def manifest(self) -> dict[str, Any]:
        return dict(json.loads((self.directory / "manifest.json").read_text()))

    def resize(self, name: str, size: int) -> None:
        """Change a file's size and its size in the manifest; the file is sparse."""
        os.truncate(self.directory / name, size)
        manifest = self.manifest()
        manifest["files"][name]["size"] = size
        (self.directory / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def test_template_contains_its_vm_and_creation_time(store: Store) -> None:
    stored = store.find()
    assert abs(stored.created - time.time()) < 600
    assert stored.shape["machine_properties"] == ["hpet", "vmport"]
    assert (stored.shape["memory_mib"], stored.shape["share"], stored.used) == (1, "9p", ram_file.PIECE)
    assert os.stat(store.templates).st_mode & 0o777 == 0o700
    assert sorted(os.listdir(store.directory)) == ["checked", "manifest.json", "memory", "state"]


@pytest.mark.parametrize("name", ["memory", "state"])
def test_altered_content_is_detected_if_content_is_read(store: Store, name: str) -> None:
    path = store.directory / name
    path.write_bytes(path.read_bytes()[:-1] + b"X")
    assert store.find(read=False).digest == DIGEST
    assert store.refusal() == f"the template {DIGEST[:12]} is damaged: {path} was altered"


def test_content_is_verified_once_for_each_change_of_a_file(store: Store) -> None:
    """Files are trusted whose stamps are recorded, since reading a gigabyte takes a second."""
    manifest = store.manifest()
    manifest["files"]["memory"]["digest"] = "0" * 64
    (store.directory / "manifest.json").write_text(json.dumps(manifest))
    store.find()
    os.utime(store.directory / "memory")
    assert store.refusal().endswith("memory was altered")


@pytest.mark.parametrize("noted", [None, "", "{", "[]"])
def test_missing_or_invalid_stamps_are_written_again(store: Store, noted: str | None) -> None:
    path = store.directory / "checked"
    before = path.read_text()
    os.unlink(path)
    if noted is not None:
        path.write_text(noted)
    store.find()
    assert path.read_text() == before


@pytest.mark.parametrize("name", ["memory", "state", "manifest.json"])
def test_missing_file_is_named_in_the_error(store: Store, name: str) -> None:
    os.unlink(store.directory / name)
    assert store.refusal() == f"the template {DIGEST[:12]} is damaged: {store.directory}/{name} is missing"


def test_unreadable_file_is_named_in_the_error(store: Store) -> None:
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
def test_damaged_manifest_is_reported(store: Store, damage: Callable[[dict[str, Any]], object]) -> None:
    manifest = store.manifest()
    damage(manifest)
    text = json.dumps(manifest)
    (store.directory / "manifest.json").write_text(text[:-1] if manifest == store.manifest() else text)
    manifest_path = f"{store.directory}/manifest.json"
    assert store.refusal() == f"the template {DIGEST[:12]} is damaged: {manifest_path} is not a valid manifest"


def test_size_of_the_state_is_limited_and_of_the_memory_is_not(store: Store) -> None:
    """The monitor reads the whole state at once and has little memory."""
    most = 64 * MIB
    store.resize("memory", 2 * most)
    store.resize("state", most)
    assert store.find(read=False).digest == DIGEST
    store.resize("state", most + 1)
    assert f"state has {most + 1} bytes" in store.refusal(read=False)


@pytest.mark.parametrize("name", ["memory", "state"])
def test_file_of_another_size_is_refused_without_reading_it(store: Store, name: str) -> None:
    size = os.path.getsize(store.directory / name)
    with open(store.directory / name, "ab") as file:
        file.write(b"x")
    assert f"/{name} has {size + 1} bytes, not {size}" in store.refusal(read=False)


def test_damaged_template_is_replaced(store: Store) -> None:
    os.truncate(store.directory / "state", 1)
    store.write(b"another state")
    assert Path(store.find().state).read_bytes() == b"another state"


@pytest.mark.parametrize("place", ["templates", "directory"])
@pytest.mark.parametrize(
    ("mode", "words"), [(0o755, ""), (0o720, "others may write to"), (0o702, "others may write to"), (0o766, "others")]
)
def test_template_directory_writable_by_others_is_not_used(store: Store, place: str, mode: int, words: str) -> None:
    """A template is a VM's whole memory: a user who can write to it controls every container restored from it."""
    path = getattr(store, place)
    os.chmod(path, mode)
    if not words:
        assert templates.is_ours(store.cache)
        assert templates.is_ours(store.cache, DIGEST)
        return
    with pytest.raises(HostError, match=f"templates are not used: {words}"):
        templates.begin(store.cache, DIGEST, SHAPE) if place == "templates" else store.find()


def test_template_directory_of_another_user_is_not_used(store: Store) -> None:
    os.chown(store.directory, 12345, -1)
    assert store.refusal() == (f"templates are not used: {store.directory} belongs to the user 12345 and has mode 0700")


def test_template_path_that_is_not_a_directory_is_not_used(store: Store, tmp_path: Path) -> None:
    """Not even a symbolic link to a directory is used."""
    os.rename(store.directory, tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", store.directory)
    assert store.refusal() == f"templates are not used: {store.directory} is not a directory"
    [(name, error)] = templates.list_all(store.cache)
    assert (name, isinstance(error, HostError)) == (DIGEST, True)


def test_touching_a_removed_template_is_harmless(store: Store) -> None:
    stored = store.find()
    templates.remove(store.cache, DIGEST)
    templates.touch(stored)
    assert templates.list_all(store.cache) == []
    assert templates.list_all(f"{store.cache}/none") == []


def test_template_without_stamps_counts_as_the_oldest(store: Store) -> None:
    os.unlink(store.directory / "checked")
    for number in range(templates.KEPT):
        store.write(digest=f"{number:064x}")
    names = [name for name, _ in templates.list_all(store.cache)]
    assert names == [f"{number:064x}" for number in range(templates.KEPT)]


def test_lock_file_that_is_a_symlink_is_not_followed(store: Store, tmp_path: Path) -> None:
    os.unlink(store.templates / f".{DIGEST}.lock")
    os.symlink(tmp_path / "target", store.templates / f".{DIGEST}.lock")
    with pytest.raises(OSError, match="Too many levels"):
        templates.begin(store.cache, DIGEST, SHAPE)
    assert not os.path.exists(tmp_path / "target")
