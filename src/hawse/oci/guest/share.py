"""A directory or file of the host that the guest sees below its share."""

from __future__ import annotations

import msgspec

from hawse.oci.guest.idmap import IdMap
from hawse.oci.guest.overlay import Overlay

#: The name of the share with the container's root file system.
ROOTFS = "rootfs"


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """A share. It appears in the guest as /run/hawse/share/<container>/<name>, unless another share has the same files.

    ``private``: mounts that the host adds below it later do not appear in the guest. ``recursive``: mounts that already
    exist below it appear. ``readonly_below``: mounts below it are read-only as well. ``owners`` maps the owners of
    files, None without a mapping. ``common``: in the guest its files are identical to those of other shares with the
    same source. ``overlay``: the overlay that is mounted on the host and shared; ``source`` is then its description.
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
