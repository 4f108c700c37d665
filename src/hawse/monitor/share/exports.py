"""Which binds of a sandbox are one file in the share. Pure.

virtiofsd has one inode for each mount that a file is seen by (QEMU 7.2 tools/virtiofsd/passthrough_ll.c, lo_key; the
Rust virtiofsd src/passthrough/inode_store.rs, InodeIds). With two inodes for one file, the guest grants a lock twice,
and sockets, FIFOs and shared mappings do not work between the two. So a source that several mounts share, in one
container or in several, is in the share once, and each mount is bound from that place by the guest.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from hawse.host.mounts.origins import Below, Origin, path_from, paths_through
from hawse.json_text import Document
from hawse.link import agreed
from hawse.oci.guest.idmap import IdMap
from hawse.oci.guest.share import Share


@dataclass
class Export:
    """What is mounted at ``place``, a path in the share, and the containers that use it. ``seen``: the mounts below it
    in the share, as far as the host's mounts arrive there."""

    place: str
    share: Share
    origin: Origin
    users: set[str] = field(default_factory=set)
    seen: tuple[Below, ...] = ()

    @property
    def follows(self) -> bool:
        """Whether what the host mounts below it, and unmounts, arrives in it with the options that it is to have."""
        return self.share.is_dir and self.share.recursive and not (self.share.private or self.share.readonly)

    def update(self, seen: tuple[Below, ...]) -> None:
        """The mounts below it in the share are these now: the host has them below the source, too."""
        gone, arrived = (set(self.seen) - set(seen)), set(seen) - set(self.seen)
        ended = {(mount.point, mount.device, mount.root) for mount in gone}
        kept = [each for each in self.origin.below if (each.point, each.device, each.root) not in ended]
        self.origin = msgspec.structs.replace(self.origin, below=tuple(sorted({*kept, *arrived})))
        self.seen = seen


@dataclass(frozen=True)
class Place:
    """Where a bind is in the share. ``inode``: its number, if it is below an export; the guest checks it, since a
    container may have replaced a part of the path."""

    path: str
    inode: int = 0


#: Where nothing is shared.
NOWHERE: Mapping[str, Place] = {}


def find(exports: Iterable[Export], share: Share, origin: Origin) -> Iterator[tuple[Export, str]]:
    """The exports that have a share's files as the share is to have them, and the path there, "." for the whole.

    A directory on the host may have been replaced since: the caller compares inodes.
    """
    for export, path, obstacle in _candidates(exports, share, origin):
        if not obstacle:
            yield export, path


def warning(exports: Sequence[Export], share: Share, origin: Origin) -> str:
    """A warning about a directory that gets a second place although it has one; "" for none."""
    if not share.is_dir:
        return ""
    found = [(each, why) for each, _, why in _candidates(exports, share, origin) if each.share.is_dir and why]
    inner = [each for each in exports if each.share.is_dir and path_from(origin, each.origin) not in (None, ".")]
    found += [(each, "and only the inner of the two was shared first") for each in inner]
    for export, why in found[:1]:
        return (
            f"{share.source[:200]} is shared with the sandbox as {export.share.source[:200]}, {why}: file locks, "
            "UNIX sockets, FIFOs and shared mappings do not work between the two [mount it alike in both places, "
            "in the first container as well]"
        )
    return ""


def _candidates(exports: Iterable[Export], share: Share, origin: Origin) -> Iterator[tuple[Export, str, str]]:
    """The exports with a share's files, the path there, and why these cannot be the share's, "" where they can."""
    for export in exports:
        path = path_from(export.origin, origin)
        if path is not None:
            yield export, path, _obstacle(export, share, origin, path)
        if export.share.recursive:
            for mount, path in paths_through(export.origin, origin):
                yield export, path, _obstacle(export, share, origin, path, through=mount)


def in_the_share(
    spec: Document, container: str, places: Mapping[str, Place]
) -> tuple[Document, list[tuple[str, str, int]]]:
    """A specification whose mounts have these places, by the names of their shares.

    Also the name, path and inode of each that is below an export, for :func:`hawse.agent.mounts.subpaths.bind`.
    """
    if not spec.get("mounts"):
        return spec, []
    sources, binds = {}, []
    for name, place in places.items():
        planned = f"{agreed.SHARE}/{container}/{name}"
        if place.inode:
            binds.append((name, place.path, place.inode))
            sources[planned] = f"{agreed.BINDS}/{container}/{name}"
        else:
            sources[planned] = f"{agreed.SHARE}/{place.path}"
    mounts = [
        mount | ({"source": sources[mount["source"]]} if mount.get("source") in sources else {})
        for mount in spec["mounts"]
    ]
    return spec | {"mounts": mounts}, binds


def _obstacle(export: Export, share: Share, origin: Origin, path: str, through: Below | None = None) -> str:
    """Why the share's files cannot be those at a path in the export, "" where they can. ``through``: the mount below
    the export that the path is on, None for the export's own."""
    below = origin.below if share.recursive else ()
    there = tuple(sorted(_relative(export.origin.below, path))) if export.share.recursive else ()
    if (export.share.readonly if through is None else export.share.readonly_below) and not share.readonly:
        return "read-only"
    # The mount of the host that it is reached by may be read-only itself, which a bind of it is as well.
    if not share.readonly and origin.readonly != (export.origin.readonly if through is None else through.readonly):
        return "by another mount of the host, of which one is read-only"
    if below != there:
        return "with other mounts below it"
    if there and (export.share.readonly, export.share.readonly_below) != (share.readonly, share.readonly_below):
        return "with other options for the mounts below it"
    if not _same_owners(export.share.owners, share.owners, recursive=bool(there) or through is not None):
        return "with other owners"
    if share.is_dir and export.share.private != share.private:
        return "with another propagation of mounts"
    return ""


def _same_owners(one: IdMap | None, other: IdMap | None, *, recursive: bool) -> bool:
    """Whether two shares map owners alike; ``recursive``: below their mounts as well."""
    if one is None or other is None:
        return one is other
    same = (one.uids, one.gids) == (other.uids, other.gids)
    return same and (not recursive or one.recursive == other.recursive)


def _relative(below: Iterable[Below], path: str) -> Iterable[Below]:
    """Those of an origin's mounts that are below a path, relative to it."""
    for mount in below:
        if path == ".":
            yield mount
        elif mount.point.startswith(f"{path}/"):
            yield msgspec.structs.replace(mount, point=posixpath.relpath(mount.point, path))
