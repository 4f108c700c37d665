"""Find the bind mounts of a sandbox that can use the same file in the share. Pure.

virtiofsd creates one inode per mount through which it sees a file (QEMU 7.2 tools/virtiofsd/passthrough_ll.c, lo_key;
the Rust virtiofsd src/passthrough/inode_store.rs, InodeIds). With two inodes for one file, the guest grants a lock
twice, and sockets, FIFOs and shared mappings do not work between the two. So a source of several mounts, in one
container or in several, is in the share once. The guest bind-mounts it from there for each mount.
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
    """A mount at ``place``, a path in the share, and the containers that use it. ``seen``: the host's mounts below it
    that have propagated into the share."""

    place: str
    share: Share
    origin: Origin
    users: set[str] = field(default_factory=set)
    seen: tuple[Below, ...] = ()

    @property
    def follows(self) -> bool:
        """Whether mounts and unmounts of the host below the source propagate into it, with the right mount options."""
        return self.share.is_dir and self.share.recursive and not (self.share.private or self.share.readonly)

    def update(self, seen: tuple[Below, ...]) -> None:
        """Set the mounts below it in the share, which are also below the source on the host."""
        gone, arrived = (set(self.seen) - set(seen)), set(seen) - set(self.seen)
        ended = {(mount.point, mount.device, mount.root) for mount in gone}
        kept = [each for each in self.origin.below if (each.point, each.device, each.root) not in ended]
        self.origin = msgspec.structs.replace(self.origin, below=tuple(sorted({*kept, *arrived})))
        self.seen = seen


@dataclass(frozen=True)
class Place:
    """The path of a bind mount's source in the share. ``inode``: its number, if it is below an export. The guest checks
    it, since a container may have replaced a component of the path."""

    path: str
    inode: int = 0


#: The places of a container without shares.
NO_PLACES: Mapping[str, Place] = {}


def find(exports: Iterable[Export], share: Share, origin: Origin) -> Iterator[tuple[Export, str]]:
    """Find exports with a share's files and the same mount options. Yields each with the path in it, "." for its root.

    A directory on the host may have been replaced since the export: the caller compares inodes.
    """
    for export, path, obstacle in _candidates(exports, share, origin):
        if not obstacle:
            yield export, path


def warning(exports: Sequence[Export], share: Share, origin: Origin) -> str:
    """A warning about a directory that is shared again with other mount options; "" for no warning."""
    if not share.is_dir:
        return ""
    duplicates = [(each, why) for each, _, why in _candidates(exports, share, origin) if each.share.is_dir and why]
    inner = [each for each in exports if each.share.is_dir and path_from(origin, each.origin) not in (None, ".")]
    duplicates += [(each, "and the inner directory was shared before the outer") for each in inner]
    for export, why in duplicates[:1]:
        return (
            f"{share.source[:200]} is shared with the sandbox as {export.share.source[:200]}, {why}: file locks, "
            "UNIX sockets, FIFOs and shared mappings do not work between the two [use the same mount options in "
            "both places, in the first container as well]"
        )
    return ""


def _candidates(exports: Iterable[Export], share: Share, origin: Origin) -> Iterator[tuple[Export, str, str]]:
    """The exports with a share's files, the path in each, and the reason why it cannot be used, "" if it can."""
    for export in exports:
        path = path_from(export.origin, origin)
        if path is not None:
            yield export, path, _obstacle(export, share, origin, path)
        if export.share.recursive:
            for mount, path in paths_through(export.origin, origin):
                yield export, path, _obstacle(export, share, origin, path, through=mount)


def with_share_paths(
    spec: Document, container: str, places: Mapping[str, Place]
) -> tuple[Document, list[tuple[str, str, int]]]:
    """Replace the sources of a specification's mounts by ``places``, which are by the names of the shares.

    Also returns name, path and inode of each source below an export, for :func:`hawse.agent.mounts.subpaths.bind`.
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
    """The reason why a share cannot use the files at a path in the export, "" if it can. ``through``: the mount below
    the export that the path is on, None for the export's mount."""
    below = origin.below if share.recursive else ()
    exported = tuple(sorted(_relative(export.origin.below, path))) if export.share.recursive else ()
    if (export.share.readonly if through is None else export.share.readonly_below) and not share.readonly:
        return "read-only"
    # The host's mount above the source may be read-only. Then a bind mount of it is read-only as well.
    if not share.readonly and origin.readonly != (export.origin.readonly if through is None else through.readonly):
        return "from another mount of the host, and one of the two is read-only"
    if below != exported:
        return "with other mounts below it"
    if exported and (export.share.readonly, export.share.readonly_below) != (share.readonly, share.readonly_below):
        return "with other options for the mounts below it"
    if not _same_owners(export.share.owners, share.owners, recursive=bool(exported) or through is not None):
        return "with other owners"
    if share.is_dir and export.share.private != share.private:
        return "with another propagation of mounts"
    return ""


def _same_owners(one: IdMap | None, other: IdMap | None, *, recursive: bool) -> bool:
    """Whether two shares map owners equally; ``recursive``: also compare the mapping of the mounts below them."""
    if one is None or other is None:
        return one is other
    same = (one.uids, one.gids) == (other.uids, other.gids)
    return same and (not recursive or one.recursive == other.recursive)


def _relative(below: Iterable[Below], path: str) -> Iterable[Below]:
    """The mounts of an origin that are below a path, relative to the path."""
    for mount in below:
        if path == ".":
            yield mount
        elif mount.point.startswith(f"{path}/"):
            yield msgspec.structs.replace(mount, point=posixpath.relpath(mount.point, path))
