"""A directory or file of the host that the guest sees below its share."""

from __future__ import annotations

import msgspec

from hawse.oci.guest.idmap import IdMap
from hawse.oci.guest.overlay import Overlay

#: The name of the share with the container's root file system.
ROOTFS = "rootfs"


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """It appears in the guest as /run/hawse/share/<container>/<name>, unless another share has the same files.

    ``private``: mounts that the host makes below it later do not appear, and unless it is ``recursive`` those that the
    host made before do not either. ``readonly_below``: mounts below it are read-only as well. ``owners`` maps the
    owners of files, None for none. ``common``: its files are the same in the guest as those of other shares with the
    same source. ``overlay``: it is mounted on the host and shared, and ``source`` is its name for messages.
    """

    name: str
    source: str
    is_dir: bool
    readonly: bool
    private: bool = False
    recursive: bool = True
    readonly_below: bool = False
    owners: IdMap | None = None
    common: bool = False
    overlay: Overlay | None = None
