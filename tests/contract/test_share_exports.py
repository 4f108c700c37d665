"""Places of shared sources in a share: containers with the same source have the same place, and no place is reused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from hawse.errors import ConfigError
from hawse.host.mounts import open_sources
from hawse.linux import mountinfo
from hawse.linux import mounts as linux
from hawse.monitor.share.share_root import ShareRoot
from tests.support.shares import bind, common, in_namespace, mount_shares, mounts_below, places_of


def test_containers_with_the_same_source_have_the_same_place(tmp_path: Path, tree: Path) -> None:
    """For a directory, a directory and a file in it, and a read-only bind before the writable one."""

    def act() -> Any:
        root = ShareRoot(f"{tmp_path}/share")
        mount_shares(root, "c1", [bind("rootfs", tree), common("mount1", tree, readonly=True), common("mount2", tree)])
        mount_shares(root, "c2", [bind("rootfs", tree), common("mount7", tree), common("mount8", tree / "below")])
        mount_shares(root, "c3", [common("mount1", tree / "file"), common("mount2", tmp_path / "other")])
        places = [places_of(root, name) for name in ("c1", "c2", "c3")]
        mounted = []
        for name in ("c1", "c2", "c3", "never"):
            root.remove(name)
            mounted.append(sorted(mounts_below(root.directory)))
        mount_shares(root, "c1", [common("mount1", tree)])
        return places, mounted, places_of(root, "c1"), os.listdir(root.directory)

    (tmp_path / "other").mkdir()
    places, mounted, again, listed = in_namespace(act)
    below, file = ((tree / name).stat().st_ino for name in ("below", "file"))
    assert places == [
        {"rootfs": ["c1/rootfs", 0], "mount1": ["@/1", 0], "mount2": ["@/1", 0]},
        {"rootfs": ["c2/rootfs", 0], "mount7": ["@/1", 0], "mount8": ["@/1/below", below]},
        {"mount1": ["@/1/file", file], "mount2": ["@/2", 0]},
    ]
    assert mounted == [
        ["", "/@/1", "/@/2", "/c2/rootfs"],
        ["", "/@/1", "/@/2"],
        [""],
        [""],
    ]
    assert (again, listed) == ({"mount1": ["@/3", 0]}, ["@"]), "no place is used twice"


def test_replaced_directory_has_a_new_place(tmp_path: Path, tree: Path) -> None:
    """The path in the share now leads to another directory than the one that the container requests."""

    def act() -> Any:
        root = ShareRoot(f"{tmp_path}/share")
        mount_shares(root, "c1", [common("mount1", tree)])
        requests = [common("mount1", tree / "below"), common("mount2", tree / "link")]
        sources = open_sources.open_sources(requests)
        (tree / "below").rename(tree / "gone")
        (tree / "below").mkdir()
        root.place("c2", requests, sources)
        return places_of(root, "c2")

    (tree / "target").mkdir()
    (tree / "link").symlink_to("target")
    target = (tree / "target").stat().st_ino
    assert in_namespace(act) == {"mount1": ["@/2", 0], "mount2": ["@/1/target", target]}


def test_containers_share_the_place_of_a_replacing_directory(tmp_path: Path, tree: Path) -> None:
    def act() -> Any:
        root = ShareRoot(f"{tmp_path}/share")
        mount_shares(root, "c1", [common("m", tree)])
        tree.rename(tmp_path / "old")
        (tree / "below").mkdir(parents=True)
        mount_shares(root, "c2", [common("m", tree), common("n", tree / "below")])
        mount_shares(root, "c3", [common("m", tree), common("old", tmp_path / "old")])
        return [places_of(root, name) for name in ("c1", "c2", "c3")]

    first, second, third = in_namespace(act)
    assert (first["m"], second["m"]) == (["@/1", 0], ["@/2", 0])
    assert second["n"][0] == "@/2/below"
    assert third == {"m": ["@/2", 0], "old": ["@/1", 0]}, "a renamed directory has its place"


def test_outer_directory_is_placed_first_and_hard_links_have_one_place(tmp_path: Path, tree: Path) -> None:
    def act() -> Any:
        linux.mount("x", f"{tree}/below", "tmpfs", 0)
        Path(f"{tree}/below/x").mkdir()
        os.link(tree / "file", tree / "again")
        root = ShareRoot(f"{tmp_path}/share")
        inside = [common("x", tree / "below" / "x"), common("below", tree / "below")]
        mount_shares(root, "c1", [*inside, common("all", tree), common("file", tree / "file")])
        mount_shares(root, "c2", [common("file", tree / "file", recursive=False)])
        other = ShareRoot(f"{tmp_path}/other")
        mount_shares(other, "c1", [common("file", tree / "file"), common("again", tree / "again")])
        return places_of(root, "c1"), places_of(other, "c1")

    nested, links = in_namespace(act)
    assert {name: path for name, (path, _) in nested.items()} == {
        "all": "@/1", "below": "@/1/below", "x": "@/1/below/x", "file": "@/1/file",
    }  # fmt: skip
    assert links == {"file": ["@/1", 0], "again": ["@/1", 0]}


@pytest.mark.parametrize(("private", "readonly"), [(False, False), (True, False), (False, True)])
def test_mount_that_the_host_makes_or_ends_between_two_containers(
    tmp_path: Path, tree: Path, private: bool, readonly: bool
) -> None:
    """If the mount appears in the first container's place, the second container has the same place. Otherwise the
    second has its own place, and a warning: in the first place it would miss the mount, which it has under runc."""

    def act() -> Any:
        linux.mount(str(tree), str(tree), "", linux.BIND)
        linux.mount("none", str(tree), "", linux.SHARED)
        root = ShareRoot(f"{tmp_path}/share")

        def place(name: str) -> Any:
            shares = [common("m", tree, private=private, readonly=readonly)]
            sources = open_sources.open_sources(shares)
            warnings = root.place(name, shares, sources)
            open_sources.close(sources)
            [(path, _)] = places_of(root, name).values()
            return path, [text.partition(", ")[2].partition(":")[0] for text in warnings]

        places = [place("c1")]
        linux.mount("x", f"{tree}/below", "tmpfs", 0)
        Path(f"{tree}/below/inside").write_text("")
        places.append(place("c2"))
        names = os.listdir(f"{root.directory}/{places[-1][0]}/below")
        looked_at = root.mounts("c2")
        places.append(place("c3"))
        linux.unmount(f"{tree}/below")
        places.append(place("c4"))
        return places, names, looked_at

    places, names, looked_at = in_namespace(act)
    assert names == ["inside"]
    if not private and not readonly:
        assert places == [["@/1", []]] * 4
        assert looked_at == ["@/1", "@/1/below"]
        return
    warning = ["with other mounts below it"]
    assert places[:3] == [["@/1", []], ["@/2", warning], ["@/2", []]]
    assert places[3] == ["@/1", []]


def test_retired_place_is_not_reused(tmp_path: Path, tree: Path) -> None:
    """The guest is still unmounting it."""

    def act() -> Any:
        root = ShareRoot(f"{tmp_path}/share")
        mount_shares(root, "c1", [common("m", tree)])
        retired = root.retire("c1")
        mount_shares(root, "c2", [common("m", tree)])
        root.remove("c1")
        return (
            retired,
            places_of(root, "c2"),
            os.listdir(f"{tmp_path}/share/@"),
            sorted(os.listdir(f"{tmp_path}/share/@/2")),
        )

    assert in_namespace(act) == [["@/1"], {"m": ["@/2", 0]}, ["2"], ["below", "file"]]


def test_failed_mount_leaves_no_mount(tmp_path: Path, tree: Path) -> None:
    def act() -> Any:
        root = ShareRoot(f"{tmp_path}/share")
        shares = [common("m", tree)]
        sources = open_sources.open_sources(shares)
        root._exported = os.open("/dev/null", os.O_PATH)
        with pytest.raises(ConfigError, match="cannot share"):
            root.place("c1", shares, sources)
        open_sources.close(sources)
        return [mount.point for mount in mountinfo.read() if "hidden" in mount.point]

    assert in_namespace(act) == []


def test_warning_names_a_directory_that_is_shared_in_two_ways(tmp_path: Path, tree: Path) -> None:
    def act() -> Any:
        root = ShareRoot(f"{tmp_path}/share")
        mount_shares(root, "c1", [common("mount1", tree / "below", readonly=True)])
        warnings = []
        for name, source in (("c2", tree / "below"), ("c3", tree)):
            requests = [common("mount1", source)]
            warnings += root.place(name, requests, open_sources.open_sources(requests))
        return warnings

    first, second = in_namespace(act)
    assert "below, read-only: file locks, UNIX sockets" in first
    assert "and the inner directory was shared before the outer" in second
