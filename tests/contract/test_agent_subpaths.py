"""Binds of paths below a shared directory, which containers can change, in a directory of the agent."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hawse.agent.mounts import subpaths
from hawse.errors import VmError
from hawse.monitor.share import share_root as share
from tests.support.forked import in_child


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    (tmp_path / "share" / "@" / "1" / "sub" / "deep").mkdir(parents=True)
    (tmp_path / "share" / "@" / "1" / "sub" / "file").write_text("content")
    return tmp_path / "share"


def bound(shared: Path, path: str, inode: int) -> Any:
    """The file at the target of a bind, in a private mount namespace, and the files that remain after the undo."""
    directory = f"{shared.parent}/binds/c1"

    def act() -> Any:
        share.enter_private_namespace()
        try:
            subpaths.bind([("mount1", path, inode)], share=str(shared), directory=directory)
            place = Path(directory, "mount1")
            seen = place.read_text() if place.is_file() else sorted(os.listdir(place))
        except VmError as error:
            seen = error.sentence()
        subpaths.unbind(directory)
        return [seen, os.path.exists(directory), (shared / "@/1/sub/file").read_text()]

    return in_child(act)


@pytest.mark.parametrize(("name", "seen"), [("sub", ["deep", "file"]), ("sub/deep", []), ("sub/file", "content")])
def test_path_in_the_share_is_bound(shared: Path, name: str, seen: object) -> None:
    inode = (shared / "@/1" / name).stat().st_ino
    assert bound(shared, f"@/1/{name}", inode) == [seen, False, "content"]


PLANTED: dict[str, Callable[[Path], object]] = {
    "a link to a directory of the guest": lambda path: path.symlink_to("/etc"),
    "a link within the share": lambda path: path.symlink_to("real"),
    "a link upwards": lambda path: path.symlink_to("../.."),
    "another directory": lambda path: path.mkdir(),
    "another file": lambda path: path.write_text("other"),
    "nothing": lambda _path: None,
}


@pytest.mark.parametrize("kind", PLANTED)
def test_path_that_a_container_has_replaced_is_refused(shared: Path, kind: str) -> None:
    directory = shared / "@/1"
    inode = (directory / "sub").stat().st_ino
    (directory / "sub").rename(directory / "real")
    PLANTED[kind](directory / "sub")
    (directory / "real" / "file").rename(directory / "kept")
    outcome = refusal(shared, inode)
    assert outcome.startswith("mount mount1 of the container cannot be bound from @/1/sub in the share: ")
    assert outcome.endswith("[another container may have replaced a part of the path: create the container again]")


def refusal(shared: Path, inode: int) -> str:
    directory = f"{shared.parent}/binds/c1"

    def act() -> str:
        share.enter_private_namespace()
        try:
            subpaths.bind([("mount1", "@/1/sub", inode)], share=str(shared), directory=directory)
        except VmError as error:
            return error.sentence()
        finally:
            subpaths.unbind(directory)
        return "bound"

    outcome: str = in_child(act)
    return outcome


def test_undo_without_binds_does_nothing(tmp_path: Path) -> None:
    subpaths.unbind(f"{tmp_path}/never")
