"""Shares of a sandbox, each mounted in a mount namespace that ends with the process that created it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hawse.host.mounts import open_sources
from hawse.linux import mounts as linux
from hawse.monitor.share import share_root as share
from hawse.monitor.share.share_root import ShareRoot
from hawse.oci.guest.share import Share
from tests.support.forked import in_child
from tests.support.mount_table import mounts_of


def in_namespace(act: Callable[[], Any]) -> Any:
    """Return the value of ``act`` in a process with a private mount namespace. Raises AssertionError if it raises."""

    def enter_and_act() -> Any:
        share.enter_private_namespace()
        return act()

    return in_child(enter_and_act)


def mounts_below(below: str) -> dict[str, tuple[set[str], str]]:
    """Options and propagation of each mount below a directory, by its path there."""
    return {
        mount.point[len(below) :]: (set(mount.options), " ".join(mount.propagation))
        for mount in mounts_of()
        if mount.point == below or mount.point.startswith(f"{below}/")
    }


def bind(name: str, source: Path, **changes: Any) -> Share:
    """A share of a source on the host, writable unless ``changes`` says otherwise."""
    return Share(name=name, source=str(source), is_dir=source.is_dir(), **{"readonly": False, **changes})


def mount_below(tree: Path) -> None:
    """Mount a directory in the tree."""
    linux.mount(str(tree), f"{tree}/below", "", linux.BIND)


def mount_shares(root: ShareRoot, container: str, shares: list[Share]) -> None:
    """Open the sources in this mount namespace and mount them in the share, without a warning."""
    sources = open_sources.open_sources(shares)
    try:
        assert root.place(container, shares, sources) == []
    finally:
        open_sources.close(sources)


def common(name: str, source: Path, **changes: bool) -> Share:
    """A share whose place other containers with the same source use too."""
    return bind(name, source, common=True, **changes)


def places_of(root: ShareRoot, container: str) -> dict[str, tuple[str, int]]:
    """The path and inode of each of a container's shares, by the names of the shares."""
    return {name: (place.path, place.inode) for name, place in root.places(container).items()}
