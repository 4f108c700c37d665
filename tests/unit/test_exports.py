"""Which binds of a sandbox are one file in the share."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from hawse.host.mounts.origins import UNKNOWN, Below, Origin
from hawse.monitor.share.exports import Export, Place, find, warning, with_share_paths
from hawse.oci.guest.idmap import IdMap
from hawse.oci.guest.share import Share

PLAIN = Origin("8:2", "/data")
BELOW = Origin("8:2", "/data/sub")
WITH_MOUNTS = Origin("8:2", "/data", (Below("cache", "0:40", "/"), Below("sub/x", "0:41", "/")))

OWNERS = IdMap(((0, 100000, 65536),), ((0, 100000, 65536),))
OWNERS_BELOW = IdMap(OWNERS.uids, OWNERS.gids, recursive=True)


def share(**changes: Any) -> Share:
    plain = Share(name="mount1", source="/data", is_dir=True, readonly=False, common=True)
    return msgspec.structs.replace(plain, **changes)


CASES: dict[str, tuple[Share, Origin, Share, Origin, str | None]] = {
    "the same directory": (share(), PLAIN, share(), PLAIN, "."),
    "the same file": (share(is_dir=False), PLAIN, share(is_dir=False), PLAIN, "."),
    "a directory in it": (share(), PLAIN, share(), BELOW, "sub"),
    "a file in it": (share(), PLAIN, share(is_dir=False), BELOW, "sub"),
    "a read-only bind of a writable one": (share(), PLAIN, share(readonly=True), PLAIN, "."),
    "both read-only": (share(readonly=True), PLAIN, share(readonly=True), PLAIN, "."),
    "recursively read-only, with nothing below": (
        share(),
        PLAIN,
        share(readonly=True, readonly_below=True),
        PLAIN,
        ".",
    ),
    "not recursive, with nothing below": (share(), PLAIN, share(recursive=False), PLAIN, "."),
    "the same mounts below": (share(), WITH_MOUNTS, share(), WITH_MOUNTS, "."),
    "a directory without a mount in one with mounts": (share(), WITH_MOUNTS, share(), Origin("8:2", "/data/y"), "y"),
    "a directory with its mount": (
        share(), WITH_MOUNTS, share(), Origin("8:2", "/data/sub", (Below("x", "0:41", "/"),)), "sub",
    ),
    "propagation of a file": (share(is_dir=False, private=True), PLAIN, share(is_dir=False), PLAIN, "."),
    "a writable bind of a read-only one": (share(readonly=True), PLAIN, share(), PLAIN, None),
    "a directory around it": (share(), BELOW, share(), PLAIN, None),
    "another directory": (share(), PLAIN, share(), Origin("8:2", "/other"), None),
    "another file system": (share(), PLAIN, share(), Origin("8:3", "/data"), None),
    "unknown": (share(), UNKNOWN, share(), UNKNOWN, None),
    "mounts below that came later": (share(), PLAIN, share(), WITH_MOUNTS, None),
    "not recursive, with mounts below": (share(), WITH_MOUNTS, share(recursive=False), WITH_MOUNTS, None),
    "recursive, of one that is not": (share(recursive=False), WITH_MOUNTS, share(), WITH_MOUNTS, None),
    "recursively read-only": (share(), WITH_MOUNTS, share(readonly=True, readonly_below=True), WITH_MOUNTS, None),
    "owners that are mapped": (share(), PLAIN, share(owners=OWNERS), PLAIN, None),
    "owners of one that is mapped": (share(owners=OWNERS), PLAIN, share(), PLAIN, None),
    "the same owners": (share(owners=OWNERS), PLAIN, share(owners=OWNERS), PLAIN, "."),
    "the same users and other groups": (
        share(owners=OWNERS), PLAIN, share(owners=IdMap(OWNERS.uids, ((0, 7, 1),))), PLAIN, None,
    ),
    "owners below as well, with nothing below": (
        share(owners=OWNERS), PLAIN, share(owners=OWNERS_BELOW), PLAIN, ".",
    ),
    "owners below as well": (share(owners=OWNERS), WITH_MOUNTS, share(owners=OWNERS_BELOW), WITH_MOUNTS, None),
    "owners of what is mounted below it": (
        share(owners=OWNERS_BELOW), WITH_MOUNTS, share(owners=OWNERS), Origin("0:41", "/"), None,
    ),
    "another propagation": (share(private=True), PLAIN, share(), PLAIN, None),
    "what is mounted below it": (share(), WITH_MOUNTS, share(), Origin("0:41", "/"), "sub/x"),
    "a directory in what is mounted below it": (share(), WITH_MOUNTS, share(), Origin("0:40", "/a/b"), "cache/a/b"),
    "what is below one that is not recursive": (
        share(recursive=False), WITH_MOUNTS, share(), Origin("0:41", "/"), None,
    ),
    "what is below a read-only one": (share(readonly=True), WITH_MOUNTS, share(), Origin("0:41", "/"), "sub/x"),
    "what is below a recursively read-only one": (
        share(readonly=True, readonly_below=True), WITH_MOUNTS, share(), Origin("0:41", "/"), None,
    ),
    "the same after it was renamed": (
        share(), Origin("8:2", "/data", inode=(1, 2)), share(), Origin("8:2", "/new", inode=(1, 2)), ".",
    ),
    "another hard link": (
        share(is_dir=False), Origin("8:2", "/a", inode=(1, 2)),
        share(is_dir=False), Origin("8:2", "/b", inode=(1, 2)), ".",
    ),
    "by a read-only mount of the host": (share(), PLAIN, share(), Origin("8:2", "/data", readonly=True), None),
    "read-only, by a read-only mount of the host": (
        share(), PLAIN, share(readonly=True), Origin("8:2", "/data", readonly=True), ".",
    ),
    "of a read-only mount of the host": (share(), Origin("8:2", "/data", readonly=True), share(), PLAIN, None),
    "through a read-only mount of the host": (
        share(), Origin("8:2", "/data", (Below("x", "0:41", "/", readonly=True),)), share(), Origin("0:41", "/"), None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bind_has_the_place_of_the_same_files(case: str) -> None:
    first, first_origin, second, origin, path = CASES[case]
    export = Export("@/1", first, first_origin, {"c1"})
    assert list(find([export], second, origin)) == ([] if path is None else [(export, path)])


def test_exports_of_the_same_path_are_all_found() -> None:
    """The directory may have been replaced between the two exports; the caller compares inodes."""
    first, second = (Export(f"@/{number}", share(), PLAIN, {"c1"}) for number in (1, 2))
    assert list(find([first, second], share(), BELOW)) == [(first, "sub"), (second, "sub")]


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("a writable bind of a read-only one", "as /data, read-only: file locks"),
        ("a directory around it", "the inner directory was shared before the outer"),
        ("mounts below that came later", "with other mounts below it"),
        ("another propagation", "with another propagation of mounts"),
        ("by a read-only mount of the host", "from another mount of the host, and one of the two is read-only"),
        ("another directory", ""),
        ("unknown", ""),
    ],
)
def test_directory_with_two_places_is_a_warning(case: str, words: str) -> None:
    first, first_origin, second, origin, _ = CASES[case]
    text = warning([Export("@/1", first, first_origin, {"c1"})], second, origin)
    assert words in text
    assert bool(text) == bool(words)


def test_file_with_two_places_causes_no_warning() -> None:
    """Engines give every container /etc/hosts, some of them read-only."""
    export = Export("@/1", share(is_dir=False, readonly=True), PLAIN, {"c1"})
    assert warning([export], share(is_dir=False), PLAIN) == ""


def test_mounts_get_the_sources_of_their_places() -> None:
    mounts: list[dict[str, Any]] = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/a", "source": "/run/hawse/share/c2/mount1", "options": ["bind", "ro"]},
        {"destination": "/b", "source": "/run/hawse/share/c2/mount2", "options": ["bind"]},
        {"destination": "/none"},
    ]
    places = {"rootfs": Place("c2/rootfs"), "mount1": Place("@/1"), "mount2": Place("@/1/sub", 77)}
    spec: dict[str, Any] = {"root": {"path": "/run/hawse/share/c2/rootfs"}, "mounts": mounts}
    seen, binds = with_share_paths(spec, "c2", places)
    assert [mount.get("source") for mount in seen["mounts"]] == [
        "proc",
        "/run/hawse/share/@/1",
        "/run/hawse/binds/c2/mount2",
        None,
    ]
    assert (seen["root"], binds) == (spec["root"], [("mount2", "@/1/sub", 77)])
    assert mounts[1]["source"] == "/run/hawse/share/c2/mount1", "the plan is not changed"
