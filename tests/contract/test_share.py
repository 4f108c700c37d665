"""The mounts of a sandbox's share, made in a mount namespace that ends with the process that made them."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hawse.errors import ConfigError
from hawse.sandbox import share
from hawse.sandbox.plan import Share


def apart(act: Callable[[], Any]) -> Any:
    """What ``act`` returns in a process with a private mount namespace. Raises AssertionError where it raises."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        answer: dict[str, Any] = {}
        try:
            share.enter_private_namespace()
            answer = {"returned": act()}
        except BaseException:
            answer = {"raised": traceback.format_exc()}
        os.write(writing, json.dumps(answer).encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as file:
        answer = json.loads(file.read())
    os.waitpid(child, 0)
    assert "raised" not in answer, answer["raised"]
    return answer["returned"]


def mounts(below: str) -> dict[str, tuple[set[str], str]]:
    """Options and propagation of each mount below a directory, by its path there."""
    found = {}
    with open("/proc/self/mountinfo") as file:
        for line in file:
            fields, _, _ = line.partition(" - ")
            _, _, _, _, point, options, *rest = fields.split()
            if point == below or point.startswith(f"{below}/"):
                found[point[len(below) :]] = (set(options.split(",")), " ".join(word.split(":")[0] for word in rest))
    return found


def made(name: str, source: Path, **changes: bool) -> Share:
    return Share(name=name, source=str(source), is_dir=source.is_dir(), **{"readonly": False, **changes})


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory with one below it that another file system is to be mounted on, and a file."""
    (tmp_path / "tree" / "below").mkdir(parents=True)
    (tmp_path / "tree" / "file").write_text("content")
    return tmp_path / "tree"


def mount_below(tree: Path) -> None:
    """A mount in the tree, as a bundle's may have."""
    share._mount(str(tree), f"{tree}/below", share._MS_BIND)


def test_shares_are_bound_with_what_is_mounted_below_them(tmp_path: Path, tree: Path) -> None:
    target = f"{tmp_path}/share/c1"

    def act() -> Any:
        share.prepare(f"{tmp_path}/share")
        mount_below(tree)
        wanted = [
            made("rw", tree), made("ro", tree, readonly=True), made("flat", tree, recursive=False),
            made("file", tree / "file"), made("private", tree, private=True),
        ]  # fmt: skip
        share.populate(wanted, target)
        found = {name: (sorted({"ro", "rw"} & options), kind) for name, (options, kind) in mounts(target).items()}
        late = tree / "late"
        late.mkdir()
        return found, os.listdir(f"{target}/rw"), Path(f"{target}/file").read_text(), mounts(f"{tmp_path}/share")[""][1]

    found, names, content, propagation = apart(act)
    assert set(found) == {"/rw", "/rw/below", "/ro", "/ro/below", "/flat", "/file", "/private", "/private/below"}
    assert found["/ro"][0] == ["ro"]
    assert [found[name][0] for name in ("/rw", "/flat", "/file")] == [["rw"]] * 3
    assert "shared" not in found["/private"][1]
    assert (sorted(names), content) == (["below", "file", "late"], "content")
    assert propagation == "shared", "virtiofsd's copy of the namespace gets what is mounted later"
    assert mounts(str(tmp_path)) == {}, "the host's table has none of it"
    assert os.listdir(target)


@pytest.mark.parametrize("kind", ["populate", "attach"])
def test_a_source_that_cannot_be_shared_is_named(tmp_path: Path, tree: Path, kind: str) -> None:
    gone = Share(name="gone", source="/no/such", is_dir=True, readonly=False)

    def act() -> str:
        try:
            if kind == "populate":
                share.populate([made("rw", tree), gone], f"{tmp_path}/share/c1")
            else:
                before = len(os.listdir("/proc/self/fd"))
                try:
                    share.open_trees([made("rw", tree), gone])
                finally:
                    assert len(os.listdir("/proc/self/fd")) == before, "a descriptor stays"
        except ConfigError as error:
            return error.message
        return ""

    assert apart(act) == "cannot share /no/such with the guest: No such file or directory"


def test_trees_of_another_namespace_are_attached_and_unmounted(tmp_path: Path, tree: Path) -> None:
    wanted = [made("rw", tree), made("flat", tree, recursive=False, readonly=True), made("file", tree / "file")]
    target = f"{tmp_path}/share/c2"

    def act() -> Any:
        share.prepare(f"{tmp_path}/share")
        mount_below(tree)
        trees = share.open_trees(wanted)
        inherited = [os.get_inheritable(fd) for fd in trees]
        share.attach(wanted, trees, target)
        found = {name: sorted({"ro", "rw"} & options) for name, (options, _) in mounts(target).items()}
        kinds = {kind for _, kind in mounts(target).values()}
        share.unmount(target)
        return found, sorted(kinds), inherited, mounts(target), os.path.exists(target), (tree / "file").read_text()

    found, kinds, inherited, after, exists, content = apart(act)
    assert found == {"/rw": ["rw"], "/rw/below": ["rw"], "/flat": ["ro"], "/file": ["rw"]}
    assert not any("shared" in kind and "master" not in kind for kind in kinds), "what the guest mounts stays there"
    assert (inherited, after, exists, content) == ([False] * 3, {}, False, "content")


def test_a_target_that_exists_is_no_target(tmp_path: Path, tree: Path) -> None:
    (tmp_path / "share").mkdir()
    (tmp_path / "share" / "rw").mkdir()
    (tmp_path / "share" / "file").write_text("somebody's")

    def act() -> list[str]:
        found = []
        for wanted in (made("rw", tree), made("file", tree / "file")):
            try:
                share.populate([wanted], f"{tmp_path}/share")
            except ConfigError as error:
                found.append(error.message.rpartition(": ")[2])
        return found

    assert apart(act) == ["File exists"] * 2


def test_a_share_that_was_never_made_is_unmounted_already(tmp_path: Path) -> None:
    share.unmount(f"{tmp_path}/none")
    (tmp_path / "c2" / "kept").mkdir(parents=True)
    (tmp_path / "c2" / "kept" / "data").write_text("somebody's")
    (tmp_path / "c2" / "empty").mkdir()
    share.unmount(f"{tmp_path}/c2")
    assert os.listdir(tmp_path / "c2") == ["kept"], "nothing is removed recursively"


def test_descriptors_are_taken_from_another_process_or_none_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    with open(tmp_path / "file") as file:
        [taken] = share.take_descriptors(os.getpid(), [file.fileno()])
        assert os.readlink(f"/proc/self/fd/{taken}") == f"{tmp_path}/file"
        os.close(taken)
        before = os.listdir("/proc/self/fd")
        with pytest.raises(OSError, match="Bad file descriptor"):
            share.take_descriptors(os.getpid(), [file.fileno(), 10**6])
        assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_forked_child_enters_a_mount_namespace() -> None:
    def act() -> bool:
        ours = os.readlink("/proc/self/ns/mnt")
        share.enter_namespace(os.getppid())
        return os.readlink("/proc/self/ns/mnt") == ours

    assert apart(act) is False, "it is in its parent's"


def test_a_namespace_that_cannot_be_entered_is_an_error() -> None:
    with pytest.raises(OSError, match="No such file"):
        share.enter_namespace(2**22 + 5)
