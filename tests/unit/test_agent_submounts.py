"""Mounts of the host below shared directories, handled in the guest."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from hawse.agent.mounts import submounts

TABLE = """\
30 28 0:26 / /run/hawse/share rw - virtiofs hawse rw
31 30 0:27 / /run/hawse/share/c1/mount7 rw - virtiofs none rw
32 31 0:28 / /run/hawse/share/c1/mount7/a\\040place rw - virtiofs none rw
33 30 0:29 / /run/hawse/share/c10/mount7 rw - virtiofs none rw
34 28 0:30 / /sys rw - sysfs sysfs rw
"""


def test_release_unmounts_from_the_innermost_mount_outwards(tmp_path: Path) -> None:
    (tmp_path / "mountinfo").write_text(TABLE)
    unmounted: list[str] = []

    def unmount(path: str) -> None:
        unmounted.append(path)
        raise OSError(errno.EINVAL, "one that has gone", path)

    for name in ("c1", "c2"):
        submounts.release(f"/run/hawse/share/{name}", mountinfo=f"{tmp_path}/mountinfo", unmount=unmount)
    assert unmounted == ["/run/hawse/share/c1/mount7/a place", "/run/hawse/share/c1/mount7"]


def test_release_without_a_table_does_nothing(tmp_path: Path) -> None:
    submounts.release("/run/hawse/share/c1", mountinfo=f"{tmp_path}/none")


def test_look_at_opens_directories_and_ignores_other_files(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "inner").mkdir()
    submounts.trigger(str(tmp_path), ["none", "file", "inner"])


def test_look_at_follows_no_symbolic_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container may have created the link in a volume: the guest would mount, or wait for, the target of the link."""
    share, outside = tmp_path / "share", tmp_path / "outside"
    (share / "inner" / "deep").mkdir(parents=True)
    (outside / "deep").mkdir(parents=True)
    (share / "link").symlink_to(outside)
    (share / "relative").symlink_to("inner")
    (share / "loop").symlink_to("loop")
    opened = []
    real = os.close

    def close(fd: int) -> None:
        opened.append(os.readlink(f"/proc/self/fd/{fd}"))
        real(fd)

    monkeypatch.setattr(os, "close", close)
    paths = [
        "link",
        "link/deep",
        "relative",
        "relative/deep",
        "loop",
        "../outside",
        "inner/../../outside",
        "inner/deep",
    ]
    submounts.trigger(str(share), paths)
    assert opened == [f"{share}/inner/deep", str(share)]
