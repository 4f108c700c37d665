"""Which images a build removes from the cache, and which stay: those of other versions and of sandboxes."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hawse.errors import ImageError
from hawse.vm.image import collect as image_collect
from hawse.vm.image.collect import GRACE, UNUSED, note_replaced, note_use
from hawse.vm.image.lock import exclusive, hold, open_lock
from tests.support.forked import in_child

DAY = 24 * 3600.0


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return tmp_path


def digest(number: int) -> str:
    return f"{number:064x}"


def make(images: Path, number: int, *, age: float = 2 * GRACE) -> Path:
    """An image whose directory has not changed for ``age`` seconds."""
    directory = images / digest(number)
    (directory / "modules").mkdir(parents=True)
    (directory / "vmlinux").write_text("kernel")
    moment = time.time() - age
    os.utime(directory, (moment, moment))
    return directory


def point(images: Path, name: str, number: int, *, read: float = 0, built: float = 0) -> str:
    """A pointer that was read and built so many seconds ago."""
    path = images / f"current-{name}"
    path.write_text(digest(number))
    os.utime(path, (time.time() - read, time.time() - built))
    return str(path)


def collect(images: str, **options: Any) -> list[str]:
    """A collection in which nothing is wrong."""
    warnings: list[str] = []
    removed = image_collect.collect(images, warn=warnings.append, **options)
    assert warnings == []
    return removed


def left(images: Path) -> list[str]:
    """All but locks of images that are left."""
    names = os.listdir(images)
    with_lock = {f"{name}.lock" for name in names}
    return sorted(name.lstrip("0") for name in names if name not in with_lock)


def test_images_that_no_pointer_names_are_removed(images: Path) -> None:
    for number in (1, 2, 3):
        make(images, number)
    keep = point(images, "a", 2)
    point(images, "b", 3, read=DAY, built=UNUSED + DAY)
    assert collect(str(images), keep=keep) == [digest(1)]
    assert left(images) == ["2", "3", "current-a", "current-b"]
    used = os.stat(images / "current-b").st_atime
    assert time.time() - used > DAY - 60, "a build does not count as a use of other pointers"


@pytest.mark.parametrize(
    ("read", "built", "stays"),
    [
        (0.0, 2 * UNUSED, True), (2 * UNUSED, 0.0, True), (UNUSED - DAY, 2 * UNUSED, True),
        (UNUSED + DAY, UNUSED + DAY, False),
    ],
)  # fmt: skip
def test_pointer_is_removed_a_month_after_its_last_use(images: Path, read: float, built: float, stays: bool) -> None:
    """Its image is removed an hour later: a start may just have read the pointer."""
    make(images, 1)
    make(images, 2)
    keep = point(images, "mine", 1, read=2 * UNUSED, built=2 * UNUSED)
    point(images, "other", 2, read=read, built=built)
    assert collect(str(images), keep=keep) == []
    assert left(images) == ["1", "2", "current-mine", *(["current-other"] if stays else [])]
    assert collect(str(images), keep=keep, now=time.time() + GRACE + 1) == ([] if stays else [digest(2)])


def test_image_that_was_replaced_a_moment_ago_stays(images: Path) -> None:
    make(images, 1)
    make(images, 2)
    keep = point(images, "a", 2)
    note_replaced(str(images), digest(1))
    note_replaced(str(images), digest(7))
    assert collect(str(images), keep=keep, now=time.time() + GRACE - 60) == []
    assert collect(str(images), keep=keep, now=time.time() + GRACE + 60) == [digest(1)]


def test_image_that_a_sandbox_holds_stays_until_its_end(images: Path) -> None:
    directory = make(images, 1)
    keep = point(images, "a", 2)
    first, second = hold(str(directory)), hold(str(directory))
    for fd in (first, second):
        assert not os.get_inheritable(fd)
        assert collect(str(images), keep=keep) == []
        os.close(fd)
    assert collect(str(images), keep=keep) == [digest(1)]


def test_process_that_is_killed_holds_nothing(images: Path) -> None:
    directory = make(images, 1)
    assert in_child(lambda: hold(str(directory)) > 0)
    assert collect(str(images), keep="") == [digest(1)]


def test_removed_image_cannot_be_held(images: Path) -> None:
    with pytest.raises(ImageError, match="was removed after this start began: no such file") as caught:
        hold(str(images / digest(1)))
    assert caught.value.hint == "try again"


def test_lock_of_an_image_is_roots_only(images: Path) -> None:
    """Another user who can open a file can lock it: every start would wait, and no image could be removed."""
    directory = make(images, 1)
    os.close(hold(str(directory)))
    assert os.stat(f"{directory}.lock").st_mode & 0o777 == 0o600
    fd = os.open(directory, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)  # as any user can
    os.close(hold(str(directory), seconds=0))
    assert collect(str(images), keep="") == [digest(1)]
    os.close(fd)
    assert left(images) == []


def test_start_does_not_wait_long_for_a_lock(images: Path) -> None:
    directory = make(images, 1)
    with exclusive(str(directory)) as free:
        assert free
        began = time.monotonic()
        with pytest.raises(ImageError, match=r"another process has had its lock for 0\.1 s") as caught:
            hold(str(directory), seconds=0.1)
        assert time.monotonic() - began < 5
        assert caught.value.hint.startswith(f"`fuser {directory}.lock` names the process")
    os.close(hold(str(directory)))


@pytest.mark.parametrize(
    ("number", "reason", "hint"),
    [
        (errno.EROFS, "read-only file system", "build it again with `hawse image build`, where the cache"),
        (errno.EACCES, "permission denied", "run as root"),
        (errno.EMFILE, "too many open files", "check the file, and the limits"),
    ],
)
def test_lock_that_cannot_be_opened_is_reported_with_its_reason(
    images: Path, monkeypatch: pytest.MonkeyPatch, number: int, reason: str, hint: str
) -> None:
    directory = make(images, 1)

    def fail(_path: str, flags: int, _mode: int = 0) -> int:
        raise OSError(number if flags & os.O_CREAT or number != errno.EROFS else errno.ENOENT, reason)

    monkeypatch.setattr(os, "open", fail)
    monkeypatch.setattr(os, "strerror", lambda _number: reason)
    with pytest.raises(ImageError, match=f"cannot be held: {directory}.lock: {reason}") as caught:
        hold(str(directory))
    assert hint in caught.value.hint


def test_image_that_a_file_replaces_has_gone(images: Path) -> None:
    (images / "file").write_text("")
    with pytest.raises(ImageError, match="was removed after this start began: not a directory"):
        hold(str(images / "file" / digest(1)))


def test_read_only_cache_needs_only_a_lock_to_read(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = make(images, 1)
    os.close(open_lock(str(directory)))
    real = os.open

    def read_only(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", read_only)
    os.close(hold(str(directory)))


def test_pointer_stays_while_its_image_is_held(images: Path) -> None:
    """A cache that is mounted read-only, in which a sandbox runs, records no use of the pointer."""
    directory = make(images, 1)
    point(images, "a", 1, read=2 * UNUSED, built=2 * UNUSED)
    fd = hold(str(directory))
    assert collect(str(images), keep="") == []
    assert left(images) == ["1", "current-a"]
    os.close(fd)
    assert collect(str(images), keep="") == []
    assert left(images) == ["1"]


def test_image_that_was_set_aside_stays_until_nothing_holds_it(images: Path) -> None:
    """A build puts another image in the place of a damaged one, with which sandboxes run."""
    directory = make(images, 1)
    first = hold(str(directory))
    aside = Path(image_collect.set_aside(str(images), digest(1)))
    again = make(images, 1)
    second = hold(str(again))
    keep = point(images, "a", 1)
    assert collect(str(images), keep=keep) == []
    assert (aside / "vmlinux").exists()
    os.close(first)
    collect(str(images), keep=keep)
    assert left(images) == ["1", "current-a"]
    os.close(second)


def test_lock_without_an_image_is_removed(images: Path) -> None:
    for name in (f"{digest(1)}.lock", f".removed-{digest(2)}.7.lock", "other.lock"):
        (images / name).touch()
    collect(str(images), keep="")
    assert left(images) == ["other.lock"]


def image_is_a_file(images: Path) -> Path:
    path = images / digest(1)
    path.touch()
    return path


def pointer_is_a_link(images: Path) -> Path:
    path = images / "current-a"
    path.symlink_to("nowhere")
    return path


def pointer_is_a_directory(images: Path) -> Path:
    path = images / "current-a"
    path.mkdir()
    return path


@pytest.mark.parametrize("spoil", [image_is_a_file, pointer_is_a_link, pointer_is_a_directory])
def test_entry_that_cannot_be_examined_is_reported_and_no_other_concerned(
    images: Path, spoil: Callable[[Path], Path]
) -> None:
    path = spoil(images)
    make(images, 3)
    warnings: list[str] = []
    assert image_collect.collect(str(images), keep="", warn=warnings.append) == [digest(3)]
    [warning] = warnings
    assert warning.startswith(f"{path} is not removed from the cache of images: ")
    assert path.is_symlink() or path.exists()


@pytest.mark.parametrize("name", [".removed-x", ".building-x", digest(1)])
def test_directory_that_cannot_be_removed_is_reported(images: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    make(images, 1).rename(images / name)
    make(images, 3)
    real = shutil.rmtree

    def rmtree(path: str) -> None:
        if f"{3:064x}" not in path:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        real(path)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    warnings: list[str] = []
    assert image_collect.collect(str(images), keep="", warn=warnings.append) == [digest(3)]
    assert len(warnings) == 1
    assert "operation not permitted" in warnings[0]


def test_pointer_of_another_user_is_read(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """O_NOATIME is for the owner and for root (open(2))."""
    make(images, 1)
    point(images, "a", 1)
    real = os.open

    def ordinary(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_NOATIME:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", ordinary)
    assert collect(str(images), keep="") == []
    assert left(images) == ["1", "current-a"]


def test_rest_of_builds_and_removals_that_were_killed_is_removed(images: Path) -> None:
    for name in (".building-x", ".removed-y", "lock-directory"):
        (images / name / "below").mkdir(parents=True)
    (images / "lock").touch()
    assert collect(str(images), keep="") == []
    assert left(images) == ["lock", "lock-directory"]


def test_start_during_a_removal_holds_a_whole_image_or_none(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It opens the lock before the directory is renamed, and gets it after that."""
    directory = make(images, 1)
    real = os.rename
    results: list[object] = []

    def start() -> None:
        try:
            results.append(os.listdir(hold(str(directory))))
        except ImageError as error:
            results.append(error.message)

    starting = threading.Thread(target=start)

    def rename(source: str, target: str) -> None:
        if source == str(directory):
            starting.start()
            time.sleep(0.1)  # it waits for the lock by then
            assert results == []
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    assert collect(str(images), keep="") == [digest(1)]
    starting.join()
    assert results == [f"the guest image in {directory} was removed after this start began: no such file or directory"]


def test_concurrent_starts_never_lose_the_image_that_they_hold(images: Path) -> None:
    """Builds remove it and build it again all the time."""
    ending = threading.Event()
    problems: list[str] = []
    held = [0] * 4

    def start(index: int) -> None:
        while not ending.is_set():
            try:
                fd = hold(str(images / digest(1)))
            except ImageError:
                continue
            try:
                for _ in range(3):
                    if not (images / digest(1) / "vmlinux").exists():
                        problems.append("it has gone")
                held[index] += 1
            finally:
                os.close(fd)

    starts = [threading.Thread(target=start, args=(index,)) for index in range(len(held))]
    for thread in starts:
        thread.start()
    removed = 0
    deadline = time.monotonic() + 60
    while (removed < 20 or not all(held)) and time.monotonic() < deadline:
        if not (images / digest(1)).exists():
            work = make(images, 2)
            work.rename(images / digest(1))
        removed += len(collect(str(images), keep=""))
        time.sleep(0.001)
    ending.set()
    for thread in starts:
        thread.join()
    assert problems == []
    assert removed >= 20
    assert all(held)


def test_use_of_a_pointer_is_recorded_once_a_day_and_not_as_a_build(images: Path) -> None:
    path = point(images, "a", 1, read=UNUSED, built=UNUSED)
    built = os.stat(path).st_mtime_ns
    note_use(path)
    used = os.stat(path)
    assert (used.st_mtime_ns, time.time() - used.st_atime < 60) == (built, True)
    os.utime(path, (time.time() - image_collect._EXACTNESS / 2, 0))
    before = os.stat(path).st_atime
    note_use(path)
    assert os.stat(path).st_atime == before
    note_use(str(images / "current-none"))
