"""The location of the sources of bind mounts in their file systems, and whether one source contains another."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hawse.host.mounts.origins import UNKNOWN, Below, Origin, locate, path_from, read_origin
from hawse.linux.mountinfo import parse

MOUNTS = parse(
    "1 0 8:1 / / rw - ext4 /dev/sda rw\n"
    "2 1 8:2 / /data rw - ext4 /dev/sdb rw\n"
    "3 2 0:40 / /data/cache rw - tmpfs none rw\n"
    "4 3 8:1 /srv /data/cache/deep rw - ext4 /dev/sda rw\n"
    "5 1 8:2 /sub /pods/volume ro - ext4 /dev/sdb rw\n"
    "6 1 8:2 / /database rw - ext4 /dev/sdb rw\n"
)


@pytest.mark.parametrize(
    ("path", "number", "origin"),
    [
        ("/etc/hosts", 1, Origin("8:1", "/etc/hosts")),
        ("/data", 2, Origin("8:2", "/", (Below("cache", "0:40", "/"), Below("cache/deep", "8:1", "/srv")))),
        ("/data/sub", 2, Origin("8:2", "/sub")),
        ("/data/cache", 3, Origin("0:40", "/", (Below("deep", "8:1", "/srv"),))),
        ("/pods/volume", 5, Origin("8:2", "/sub", readonly=True)),
        ("/pods/volume/x", 5, Origin("8:2", "/sub/x", readonly=True)),
        ("/pods/volume", 77, UNKNOWN),
        ("/elsewhere", 5, UNKNOWN),
    ],
)
def test_source_is_located_in_its_file_system(path: str, number: int, origin: Origin) -> None:
    assert locate(path, number, MOUNTS) == origin


@pytest.mark.parametrize(
    ("outer", "inner", "path"),
    [
        (Origin("8:2", "/"), Origin("8:2", "/"), "."),
        (Origin("8:2", "/"), Origin("8:2", "/sub/x"), "sub/x"),
        (Origin("8:2", "/sub"), Origin("8:2", "/sub/x"), "x"),
        (Origin("8:2", "/sub"), Origin("8:2", "/subway"), None),
        (Origin("8:2", "/sub/x"), Origin("8:2", "/sub"), None),
        (Origin("8:1", "/sub"), Origin("8:2", "/sub"), None),
        (UNKNOWN, UNKNOWN, None),
    ],
)
def test_path_from_one_source_to_another(outer: Origin, inner: Origin, path: str | None) -> None:
    assert path_from(outer, inner) == path


def test_two_paths_of_one_directory_have_one_origin(tmp_path: Path) -> None:
    (tmp_path / "real" / "below").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    assert read_origin(f"{tmp_path}/link") == read_origin(f"{tmp_path}/real") != UNKNOWN
    assert path_from(read_origin(f"{tmp_path}/real"), read_origin(f"{tmp_path}/link/below")) == "below"


def test_reading_leaves_no_descriptor(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    read_origin(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        read_origin(f"{tmp_path}/missing")
    assert len(os.listdir("/proc/self/fd")) == before
