"""Which images a build removes from the cache, and which stay: those of other versions and of sandboxes."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from hawse.errors import ImageError
from hawse.vm.image import collect as image_collect
from hawse.vm.image.collect import GRACE, UNUSED, collect, hold, note_replaced, note_use
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


def left(images: Path) -> list[str]:
    return sorted(name.lstrip("0") for name in os.listdir(images))


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


def test_remains_of_killed_builds_and_removals_are_removed(images: Path) -> None:
    for name in (".building-x", ".removed-y", "lock-directory"):
        (images / name / "below").mkdir(parents=True)
    (images / "lock").touch()
    assert collect(str(images), keep="") == []
    assert left(images) == ["lock", "lock-directory"]


def test_start_during_a_removal_holds_a_whole_image_or_none(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It opens the directory before it is renamed, and gets the lock after that."""
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
        starting.start()
        time.sleep(0.1)  # now it waits for the lock
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
