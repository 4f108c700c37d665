"""Directories that other users can change are detected and reported. New directories get the same mode under every
umask."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from hawse.cache import results, trusted
from hawse.errors import HostError
from hawse.jail import tree
from hawse.vm import templates
from hawse.vm.arguments import VmShape
from hawse.vm.image import store
from tests.support.ready import make_image

NOBODY = 12345
SHAPE = VmShape(
    qemu="/q", accel="tcg", memory_mib=1, cpus=2, kernel="/k", initrd="/i", kernel_append="", bridges=[], share="9p",
    machine_properties=frozenset(),
)  # fmt: skip


@pytest.fixture(params=[0o000, 0o077], ids=["umask 000", "umask 077"])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: str | Path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def test_own_directory_below_a_sticky_one_is_trusted(tmp_path: Path) -> None:
    """For example a cache below /tmp."""
    (tmp_path / "sticky" / "cache" / "images").mkdir(parents=True)
    os.chmod(tmp_path / "sticky", 0o1777)
    assert trusted.check(f"{tmp_path}/sticky/cache", "images")
    assert not trusted.check(f"{tmp_path}/sticky/cache", "none")
    assert not trusted.check(f"{tmp_path}/sticky/none", "images")


@pytest.mark.parametrize("place", ["", "cache", "cache/images", "cache/images/d1"])
@pytest.mark.parametrize("bits", [0o770, 0o707])
def test_directory_writable_by_others_is_named_in_the_error(tmp_path: Path, place: str, bits: int) -> None:
    path = tmp_path / "parent"
    (path / "cache" / "images" / "d1").mkdir(parents=True)
    os.chmod(path / place, bits)
    name = f"{path}/{place}".rstrip("/")
    with pytest.raises(HostError) as caught:
        trusted.check(f"{path}/cache", "images", "d1")
    assert caught.value.message == (f"others may write to {name}, which belongs to the user 0 and has mode {bits:04o}")
    assert caught.value.hint.startswith(f"`chmod go-w {name}` and remove what others may have changed; or set image.c")


@pytest.mark.parametrize("place", ["cache", "cache/images"])
def test_sticky_cache_directory_is_refused(tmp_path: Path, place: str) -> None:
    """Other users could create files there that hawse would use."""
    (tmp_path / "cache" / "images").mkdir(parents=True)
    os.chmod(tmp_path / place, 0o1777)
    with pytest.raises(HostError, match=f"others may write to {tmp_path}/{place}, which belongs to the user 0 and has"):
        trusted.check(f"{tmp_path}/cache", "images")


@pytest.mark.parametrize("place", ["", "cache", "cache/images"])
def test_directory_of_another_user_is_named_in_the_error(tmp_path: Path, place: str) -> None:
    path = tmp_path / "parent"
    (path / "cache" / "images").mkdir(parents=True, mode=0o755)
    os.chown(path / place, NOBODY, -1)
    name = f"{path}/{place}".rstrip("/")
    with pytest.raises(HostError, match=f"{name} belongs to the user {NOBODY} and has mode 0755") as caught:
        trusted.check(f"{path}/cache", "images")
    assert caught.value.hint.startswith(f"`chown root {name}` and")


def test_parents_of_a_missing_directory_are_checked(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    os.chmod(tmp_path / "open", 0o777)
    with pytest.raises(HostError, match=f"others may write to {tmp_path}/open"):
        trusted.make(f"{tmp_path}/open/cache", "images")
    assert os.listdir(tmp_path / "open") == []


def test_symlinks_are_followed_as_by_the_kernel(tmp_path: Path) -> None:
    (tmp_path / "real" / "images").mkdir(parents=True)
    (tmp_path / "links").mkdir()
    os.symlink("../real", tmp_path / "links" / "cache")
    os.symlink(f"{tmp_path}/links/./cache", tmp_path / "first")
    assert trusted.check(f"{tmp_path}/first", "images")
    os.chmod(tmp_path / "links", 0o777)
    with pytest.raises(HostError, match=f"others may write to {tmp_path}/links"):
        trusted.check(f"{tmp_path}/first", "images")


def test_symlink_of_another_user_is_not_trusted(tmp_path: Path) -> None:
    """In a sticky directory the owner of a symbolic link can replace it."""
    (tmp_path / "real").mkdir()
    os.symlink("real", tmp_path / "cache")
    os.lchown(tmp_path / "cache", NOBODY, -1)
    with pytest.raises(HostError, match=f"{tmp_path}/cache belongs to the user {NOBODY}"):
        trusted.check(f"{tmp_path}/cache")


def test_symlink_loop_is_an_error(tmp_path: Path) -> None:
    os.symlink("loop", tmp_path / "loop")
    with pytest.raises(HostError, match="has too many symbolic links"):
        trusted.check(f"{tmp_path}/loop")


@pytest.mark.parametrize("below", [(), ("images",)])
def test_file_instead_of_a_directory_is_named_in_the_error(tmp_path: Path, below: tuple[str, ...]) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(HostError, match=f"{tmp_path}/cache is not a directory"):
        trusted.check(f"{tmp_path}/cache", *below)


def test_directory_that_cannot_be_created_is_named_in_the_error() -> None:
    with pytest.raises(HostError, match="cannot create /proc/none: No such file or directory"):
        trusted.make("/proc/none", "images")


def test_new_directories_have_the_requested_mode(tmp_path: Path, umask: int) -> None:
    directory = trusted.make(f"{tmp_path}/a/b", "c", "d")
    assert [mode(path) for path in (f"{tmp_path}/a", f"{tmp_path}/a/b", f"{tmp_path}/a/b/c", directory)] == [0o755] * 4
    assert mode(trusted.make(f"{tmp_path}/a/b", "private", mode=0o700)) == 0o700
    with trusted.ordinary_umask():
        (tmp_path / "file").touch()
    assert mode(tmp_path / "file") == 0o644
    assert os.umask(umask) == umask


@pytest.mark.usefixtures("umask")
def test_files_and_directories_of_the_cache_have_fixed_modes(tmp_path: Path) -> None:
    cache_path = f"{tmp_path}/cache"
    results.write(f"{cache_path}/accel.json", "key", "value")
    with results.locked(f"{cache_path}/lock"):
        pass
    draft = templates.begin(cache_path, "d" * 64, SHAPE)
    assert draft is not None
    ram = os.memfd_create("ram")
    os.ftruncate(ram, 4096)
    draft.fill(ram, b"state")
    os.close(ram)
    draft.commit()
    draft.close()
    jail = tree.obtain("/usr/bin/qemu-system-x86_64", cache=cache_path)
    modes = {
        path: mode(path)
        for path in (cache_path, f"{cache_path}/accel.json", f"{cache_path}/lock", f"{cache_path}/jails")
    }
    assert list(modes.values()) == [0o755, 0o644, 0o600, 0o755]
    assert {
        mode(f"{cache_path}/jails/{name}") for name in os.listdir(f"{cache_path}/jails") if name.endswith(".json")
    } == {0o644}
    directory = f"{cache_path}/templates/{'d' * 64}"
    assert (mode(f"{cache_path}/templates"), mode(directory)) == (0o700, 0o700)
    assert {mode(f"{directory}/{name}") for name in os.listdir(directory)} == {0o600}
    for parent, directories, files in os.walk(jail):
        assert {mode(f"{parent}/{name}") for name in directories} <= {0o755}, "QEMU's own user reaches its files"
        assert {mode(f"{parent}/{name}") for name in files} <= {0o555, 0o644}


def test_cached_results_writable_by_others_are_not_read(tmp_path: Path) -> None:
    path = f"{tmp_path}/cache/answers.json"
    results.write(path, "key", 5)
    assert results.read(path, "key") == 5
    os.chmod(tmp_path / "cache", 0o777)
    assert results.read(path, "key") is None
    before = Path(path).read_text()
    results.write(path, "key", 6)
    assert Path(path).read_text() == before


def test_lock_file_that_is_a_symlink_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("content")
    os.symlink("target", tmp_path / "lock")
    with pytest.raises(OSError, match="Too many levels"), results.locked(f"{tmp_path}/lock"):
        pass
    assert (tmp_path / "target").read_text() == "content"


@pytest.mark.parametrize("place", ["", "images", "images/d1", "images/d1/vmlinux", "images/d1/manifest.json"])
def test_image_writable_by_others_is_not_used(tmp_path: Path, place: str) -> None:
    cache_path = f"{tmp_path}/cache"
    make_image(cache_path)
    store.locate(cache=cache_path)
    path = f"{cache_path}/{place}".rstrip("/")
    os.chmod(path, mode(path) | 0o020)
    with pytest.raises(HostError, match=f"others may write to {path}, "):
        store.locate(cache=cache_path)


def test_jail_below_a_directory_writable_by_others_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "cache" / "jails").mkdir(parents=True)
    os.chmod(tmp_path / "cache", 0o777)
    with pytest.raises(HostError, match=f"others may write to {tmp_path}/cache, "):
        tree.obtain("/usr/bin/qemu-system-x86_64", cache=f"{tmp_path}/cache")
