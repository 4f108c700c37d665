"""Files that are replaced as a whole, and attributes of the kernel."""

from __future__ import annotations

import os
import resource
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hawse.linux.files import read_attribute, read_text, replace_file, sync_file, write_attribute


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Writes beyond fail with EFBIG (setrlimit(2), RLIMIT_FSIZE), as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("data", [b"", b"new", b"x" * 100_000])
def test_file_is_created_and_replaced(tmp_path: Path, data: bytes, durable: bool) -> None:
    path = tmp_path / "file"
    replace_file(str(path), data, durable=durable)
    assert path.read_bytes() == data
    replace_file(str(path), b"again", durable=durable)
    assert path.read_bytes() == b"again"
    assert os.listdir(tmp_path) == ["file"]


def test_file_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    replace_file("file", b"new", durable=True)
    assert (tmp_path / "file").read_bytes() == b"new"


@pytest.mark.parametrize(
    ("mode", "mask", "expected"),
    [
        (None, 0o022, 0o644), (None, 0o077, 0o600), (None, 0, 0o666),
        (0o600, 0, 0o600), (0o644, 0o077, 0o644), (0o640, 0o777, 0o640),
    ],
)  # fmt: skip
def test_mode_is_the_requested_one_or_that_of_the_umask(
    tmp_path: Path, mode: int | None, mask: int, expected: int
) -> None:
    """Also for a file that had another one."""
    for name in ("old", "new"):
        path = tmp_path / name
        if name == "old":
            path.touch(mode=0o400)
        with umask(mask):
            replace_file(str(path), b"x", mode=mode)
        assert stat.S_IMODE(path.stat().st_mode) == expected


def test_longest_name_can_be_replaced(tmp_path: Path) -> None:
    """The temporary name does not contain the name of the file, which may have as many bytes as a name can have."""
    path = tmp_path / ("n" * 255)
    replace_file(str(path), b"x")
    assert path.read_bytes() == b"x"


def test_reader_has_the_old_content_or_the_new_one(tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    contents = [letter * 200_000 for letter in (b"a", b"b")]
    replace_file(path, contents[0])
    done, seen = threading.Event(), set[bytes]()

    def read() -> None:
        while not done.is_set():
            with open(path, "rb") as file:
                seen.add(file.read())

    reader = threading.Thread(target=read)
    reader.start()
    with open(path, "rb") as opened:
        for number in range(200):
            replace_file(path, contents[number % 2])
        assert opened.read() == contents[0], "an open file is not changed"
    done.set()
    reader.join()
    assert seen <= set(contents)


def test_writers_at_the_same_time_leave_one_whole_file(tmp_path: Path) -> None:
    path, failures = str(tmp_path / "file"), list[BaseException]()
    contents = [bytes([65 + number]) * 50_000 for number in range(4)]

    def write(data: bytes) -> None:
        try:
            for _ in range(50):
                replace_file(path, data)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(data,)) for data in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert Path(path).read_bytes() in contents
    assert os.listdir(tmp_path) == ["file"]


def test_symbolic_link_is_replaced_and_its_target_stays(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    replace_file(str(link), b"new")
    assert (link.is_symlink(), link.read_text(), target.read_text()) == (False, "new", "old")


@pytest.mark.parametrize("kind", ["symlink", "hard link", "fifo", "file"])
def test_temporary_file_of_somebody_else_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A user who may write to the directory cannot have the file before it gets its name, even with a known name."""
    monkeypatch.setattr(os, "urandom", bytes)
    theirs, temporary = tmp_path / "theirs", tmp_path / f".hawse-{'00' * 8}"
    theirs.write_text("theirs")
    if kind == "symlink":
        temporary.symlink_to(theirs)
    elif kind == "hard link":
        temporary.hardlink_to(theirs)
    elif kind == "fifo":
        os.mkfifo(temporary)
    else:
        temporary.touch()
    with pytest.raises(FileExistsError):
        replace_file(str(tmp_path / "file"), b"new")
    assert theirs.read_text() == "theirs"
    assert sorted(os.listdir(tmp_path)) == sorted([temporary.name, "theirs"]), "it is not removed either"


@pytest.mark.parametrize("failure", ["directory", "full", "missing", "interrupt", "sync"])
def test_failure_leaves_the_old_file_and_no_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    path = tmp_path / "file"
    if failure == "directory":
        path.mkdir()
        (path / "entry").touch()
    elif failure == "missing":
        path = tmp_path / "no" / "file"
    else:
        path.write_text("old")
    descriptors = len(os.listdir("/proc/self/fd"))
    if failure == "full":
        with files_of_at_most(10), pytest.raises(OSError, match="File too large"):
            replace_file(str(path), b"x" * 20_000)
    elif failure == "interrupt":
        monkeypatch.setattr(os, "rename", interrupt)
        with pytest.raises(KeyboardInterrupt):
            replace_file(str(path), b"new")
    elif failure == "sync":
        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="Input/output error"):
            replace_file(str(path), b"new", durable=True)
    else:
        with pytest.raises(IsADirectoryError if failure == "directory" else FileNotFoundError):
            replace_file(str(path), b"new")
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert os.listdir(tmp_path) == ([] if failure == "missing" else ["file"])
    assert failure in ("directory", "missing") or path.read_text() == "old"


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def fail(_: int) -> None:
    raise OSError(5, "Input/output error")


def test_durable_file_and_then_its_directory_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content before the name: after a power failure the name must not be that of an empty file."""
    path, events = str(tmp_path / "file"), list[str]()

    def sync(fd: int) -> None:
        opened = os.readlink(f"/proc/self/fd/{fd}")
        with open(f"/proc/self/fd/{fd}", "rb") if os.path.isfile(opened) else open(os.devnull, "rb") as file:
            events.append(f"{os.path.basename(opened)[:7]} {file.read().decode()}".strip())

    def rename(source: str, target: str) -> None:
        events.append("rename")
        os.replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "rename", rename)
    replace_file(path, b"content", durable=True)
    assert events == [".hawse- content", "rename", tmp_path.name[:7]]
    events.clear()
    replace_file(path, b"content")
    assert events == ["rename"]


def test_sync_of_a_missing_file_is_an_error(tmp_path: Path) -> None:
    sync_file(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        sync_file(f"{tmp_path}/missing")


def test_attributes_are_read_without_white_space(tmp_path: Path) -> None:
    path = tmp_path / "attribute"
    path.write_text(" 1-3\n\n")
    assert (read_attribute(str(path)), read_text(str(path))) == ("1-3", "1-3")
    path.write_bytes(b"\xff")
    assert read_text(str(path)) == ""
    assert read_text(str(tmp_path)) == read_text(f"{tmp_path}/missing") == ""
    with pytest.raises(FileNotFoundError):
        read_attribute(f"{tmp_path}/missing")


def test_attribute_is_written_in_one_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel takes each write(2) as one value. A missing attribute is not created."""
    path, calls, write = tmp_path / "attribute", list[bytes](), os.write
    path.write_text("before")

    def record(fd: int, data: bytes) -> int:
        calls.append(data)
        return write(fd, data)

    monkeypatch.setattr(os, "write", record)
    write_attribute(str(path), "+cpu +memory")
    assert (calls, path.read_text()) == ([b"+cpu +memory"], "+cpu +memory")
    with pytest.raises(FileNotFoundError):
        write_attribute(f"{tmp_path}/missing", "1")
