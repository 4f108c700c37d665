"""The template store: a template is written under a lock, and is visible only when it is complete."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hawse.errors import HostError
from hawse.vm import ram_file, templates
from hawse.vm.arguments import VmShape

DIGEST = "d" * 64


@pytest.fixture
def shape(tmp_path: Path) -> VmShape:
    for name in ("qemu", "kernel", "initrd"):
        (tmp_path / name).write_text(name)
    return VmShape(
        qemu=f"{tmp_path}/qemu", accel="tcg", memory_mib=1, cpus=2, kernel=f"{tmp_path}/kernel",
        initrd=f"{tmp_path}/initrd", kernel_append="", bridges=[{"driver": "pcie-root-port", "id": "port0"}],
        share="virtiofs",
    )  # fmt: skip


def leave(cache: str, digest: str, shape: VmShape, content: bytes = b"memory") -> None:
    draft = templates.begin(cache, digest, shape)
    assert draft is not None
    ram = ram_file.make(ram_file.MIB)
    os.pwrite(ram, content, 4096)
    draft.fill(ram, b"state")
    os.close(ram)
    assert templates.find(cache, digest) is None, "it is not visible before it is complete"
    draft.commit()
    draft.close()


def test_stored_template_is_found_unchanged(shape: VmShape, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    assert templates.find(cache, DIGEST) is None
    leave(cache, DIGEST, shape)
    stored = templates.find(cache, DIGEST)
    assert stored is not None
    assert stored.used == ram_file.PIECE
    assert stored.shape["memory_mib"] == 1
    assert Path(stored.state).read_bytes() == b"state"
    assert b"memory" in Path(stored.memory).read_bytes()
    assert templates.list_all(cache) == [(DIGEST, stored)]
    templates.remove(cache, DIGEST)
    assert templates.find(cache, DIGEST) is None


def test_second_writer_of_the_same_template_gets_none(shape: VmShape, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    first = templates.begin(cache, DIGEST, shape)
    assert first is not None
    assert templates.begin(cache, DIGEST, shape) is None
    first.close()
    leave(cache, DIGEST, shape)


def test_leftovers_of_a_killed_writer_are_removed(shape: VmShape, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    half = cache / "templates" / f".{DIGEST}.new"
    half.mkdir(parents=True, mode=0o700)
    (half / "memory").write_text("half of it")
    os.chmod(cache / "templates", 0o700)
    assert templates.list_all(str(cache)) == []
    leave(str(cache), DIGEST, shape)
    assert not half.exists()


def test_copied_template_is_valid_after_its_content_is_verified(shape: VmShape, tmp_path: Path) -> None:
    """Inode and times differ, so the content is verified and they are recorded again."""
    cache = str(tmp_path / "cache")
    leave(cache, DIGEST, shape)
    path = Path(f"{cache}/templates/{DIGEST}/memory")
    noted = path.with_name("checked").read_text()
    os.utime(path)
    assert templates.find(cache, DIGEST) is not None
    assert path.with_name("checked").read_text() != noted


def test_changed_byte_is_detected(shape: VmShape, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    leave(cache, DIGEST, shape)
    with open(f"{cache}/templates/{DIGEST}/memory", "r+b") as file:
        file.seek(-ram_file.PIECE, os.SEEK_END)
        file.write(b"M")
    with pytest.raises(HostError, match="memory was altered"):
        templates.find(cache, DIGEST)


def test_damaged_template_is_listed_with_the_reason(shape: VmShape, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    leave(cache, DIGEST, shape)
    os.truncate(f"{cache}/templates/{DIGEST}/state", 1)
    [(digest, problem)] = templates.list_all(cache)
    assert digest == DIGEST
    assert isinstance(problem, HostError)
    assert "state has 1 bytes, not 5" in problem.message


def test_least_recently_used_templates_are_removed_first(shape: VmShape, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    names = [f"{number:064x}" for number in range(templates.KEPT + 1)]
    for age, name in enumerate(names[:-1]):
        leave(cache, name, shape)
        os.utime(f"{cache}/templates/{name}/checked", (1000 + age, 1000 + age))
    oldest = templates.find(cache, names[0])
    assert oldest is not None
    templates.touch(oldest)
    leave(cache, names[-1], shape)
    assert {name for name, _ in templates.list_all(cache)} == set(names) - {names[1]}
