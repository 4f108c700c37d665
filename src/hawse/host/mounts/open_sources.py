"""Open the sources of shared mounts: detached copies of the host's mounts.

For a container that joins a sandbox the command opens them, and for the first container the monitor. Sources are opened
by descriptors, and no link in their paths is followed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from hawse.errors import ConfigError
from hawse.host.mounts.kernel_views import kernel_view
from hawse.host.mounts.origins import UNKNOWN, Origin, read_origin
from hawse.host.mounts.overlays import make
from hawse.linux import mounts, user_namespaces
from hawse.oci.guest.idmap import IdMap
from hawse.oci.guest.overlay import Overlay
from hawse.oci.guest.share import Share


@dataclass(frozen=True)
class Source:
    """A source to share: a descriptor of a detached copy of its mounts, and its origin.

    ``reused``: it is an overlay that another container of the sandbox already uses; the descriptor is of one of its
    layers.
    """

    tree: int
    origin: Origin = UNKNOWN
    reused: bool = False


def open_sources(shares: Sequence[Share], overlays: Collection[str] = ()) -> list[Source]:
    """Open the sources in this process's mount namespace; :func:`close` closes them.

    A sandbox's mount namespace may never get mounts that the host adds after the namespace was created, so the caller
    opens the sources in the namespace where it runs. ``overlays`` are the keys of the overlays that the sandbox already
    uses: a second mount of an overlay would replace the working directory of the first (Linux fs/overlayfs/super.c,
    ovl_workdir_create()).

    Raises :class:`ConfigError` naming the source.
    """
    used = set(overlays)
    with ExitStack() as undo:
        sources = []
        for share in shares:
            if share.overlay is None:
                sources.append(_open_source(share))
            else:
                sources.append(_open_overlay(share.overlay, reused=share.overlay.key in used))
                used.add(share.overlay.key)
            undo.callback(os.close, sources[-1].tree)
        undo.pop_all()
    return sources


def close(sources: Sequence[Source]) -> None:
    """Close the descriptors of :func:`open_sources`."""
    for source in sources:
        os.close(source.tree)


def _open_source(share: Share) -> Source:
    try:
        origin = read_origin(share.source) if share.common else UNKNOWN
        tree = mounts.open_tree(share.source, recursive=share.recursive)
    except OSError as error:
        raise ConfigError(f"cannot share {share.source} with the guest: {error.strerror}") from None
    try:
        mode = os.fstat(tree).st_mode
        # Sockets and FIFOs give no access to the kernel: /dev/log may be in the host's /dev.
        kind = "" if stat.S_ISSOCK(mode) or stat.S_ISFIFO(mode) else kernel_view(tree)
        if kind:
            # The plan already excludes paths that lead to such a file system. This one is mounted at another place, or
            # the path was replaced after planning.
            raise ConfigError(
                f"cannot share {share.source} with the guest: it is on a file system of the host kernel, {kind}",
                hint="bind /proc, /sys or /dev: the container gets those of the guest kernel",
            )
        if share.owners is not None:
            _map_owners(share.source, share.owners, tree)
    except BaseException:
        os.close(tree)
        raise
    return Source(tree, origin)


def _open_overlay(overlay: Overlay, *, reused: bool) -> Source:
    origin = Origin(device=overlay.key, path="/")
    try:
        tree = mounts.open_tree(overlay.upper or overlay.lowers[0]) if reused else make(overlay)
    except OSError as error:
        raise ConfigError(f"cannot mount {overlay.name}: {error.strerror}") from None
    return Source(tree, origin, reused)


def _map_owners(source: str, owners: IdMap, tree: int) -> None:
    try:
        namespace = user_namespaces.create(owners.uids, owners.gids)
    except OSError as error:
        raise ConfigError(
            f"cannot map the owners of {source}: the kernel refuses uidMappings or gidMappings: {error.strerror}",
            hint="use at most 340 ranges that do not overlap; user.max_user_namespaces must not be 0",
        ) from None
    try:
        mounts.map_ids(tree, namespace, recursive=owners.recursive)
    except OSError as error:
        raise ConfigError(
            f"cannot map the owners of {source}: its file system does not support ID-mapped mounts: {error.strerror}",
            hint="use a volume on another file system, such as ext4 or xfs, or a pod without a user namespace",
        ) from None
    finally:
        os.close(namespace)
