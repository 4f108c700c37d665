"""Which binds of a sandbox are one file in the share. Pure.

virtiofsd has one inode for each mount that a file is seen by (QEMU 7.2 tools/virtiofsd/passthrough_ll.c, lo_key; the
Rust virtiofsd src/passthrough/inode_store.rs, InodeIds). With two inodes for one file, the guest grants a lock twice,
and sockets, FIFOs and shared mappings do not work between the two. So a source that several mounts share, in one
container or in several, is in the share once, and each mount is bound from that place by the guest.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hawse.oci.sources import GUEST_BINDS, GUEST_SHARE
from hawse.sandbox.origins import Origin, path_from
from hawse.sandbox.plan import Share


@dataclass
class Export:
    """What is mounted at ``place``, a path in the share, and the containers that use it."""

    place: str
    share: Share
    origin: Origin
    users: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Place:
    """Where a bind is in the share. ``inode``: its number, if it is below an export; the guest checks it, since a
    container may have replaced a part of the path."""

    path: str
    inode: int = 0


#: Where nothing is shared.
NOWHERE: Mapping[str, Place] = {}


def find(exports: Iterable[Export], share: Share, origin: Origin) -> tuple[Export, str] | None:
    """The export that has a share's files as the share is to have them, and the path there, "." for the whole."""
    for export in exports:
        path = path_from(export.origin, origin)
        if path is not None and not _obstacle(export, share, origin, path):
            return export, path
    return None


def warning(exports: Iterable[Export], share: Share, origin: Origin) -> str:
    """A warning about a directory that gets a second place although it has one; "" for none."""
    for export in exports:
        if not (share.is_dir and export.share.is_dir):
            continue
        if (path := path_from(export.origin, origin)) is not None:
            why = _obstacle(export, share, origin, path)
        elif path_from(origin, export.origin) is not None:
            why = "and only the inner of the two was shared first"
        else:
            continue
        if why:
            return (
                f"{share.source[:200]} is shared with the sandbox as {export.share.source[:200]}, {why}: file locks, "
                "UNIX sockets, FIFOs and shared mappings do not work between the two [mount it alike in both places, "
                "in the first container as well]"
            )
    return ""


def in_the_share(
    spec: dict[str, Any], container: str, places: Mapping[str, Place]
) -> tuple[dict[str, Any], list[tuple[str, str, int]]]:
    """A specification whose mounts have these places, by the names of their shares.

    Also the name, path and inode of each that is below an export, for :func:`hawse.agent.subpaths.bind`.
    """
    if not spec.get("mounts"):
        return spec, []
    sources, binds = {}, []
    for name, place in places.items():
        planned = f"{GUEST_SHARE}/{container}/{name}"
        if place.inode:
            binds.append((name, place.path, place.inode))
            sources[planned] = f"{GUEST_BINDS}/{container}/{name}"
        else:
            sources[planned] = f"{GUEST_SHARE}/{place.path}"
    mounts = [
        mount | ({"source": sources[mount["source"]]} if mount.get("source") in sources else {})
        for mount in spec["mounts"]
    ]
    return spec | {"mounts": mounts}, binds


def _obstacle(export: Export, share: Share, origin: Origin, path: str) -> str:
    """Why the share's files cannot be those of the export, "" where they can."""
    below = origin.below if share.recursive else ()
    there = tuple(sorted(_relative(export.origin.below, path))) if export.share.recursive else ()
    if export.share.readonly and not share.readonly:
        return "read-only"
    if below != there:
        return "with other mounts below it"
    if there and (export.share.readonly, export.share.readonly_below) != (share.readonly, share.readonly_below):
        return "with other options for the mounts below it"
    if (export.share.uids, export.share.gids) != (share.uids, share.gids) or (
        there and export.share.map_below != share.map_below
    ):
        return "with other owners"
    if share.is_dir and export.share.private != share.private:
        return "with another propagation of mounts"
    return ""


def _relative(below: Iterable[str], path: str) -> Iterable[str]:
    """Those of an origin's mounts that are below a path, relative to it."""
    for line in below:
        point, _, rest = line.partition(" ")
        if path == ".":
            yield line
        elif point.startswith(f"{path}/"):
            yield f"{posixpath.relpath(point, path)} {rest}"
