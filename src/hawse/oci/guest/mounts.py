"""Plan the mounts of a container: the shares and the guest's mounts. Pure, except for the questions to HostFiles.

A mount of the specification becomes one of these:

- a share: a directory or file of the host, which the guest binds; an overlay is mounted on the host first;
- a share with a forwarded socket: connections in the guest are forwarded to a socket of the host;
- a file system of the guest that replaces the host's: huge pages, shared memory for /dev/shm, and the kernel's file
  systems in /proc, /sys and /dev;
- an entry of linux.devices, for a bind of a device node;
- an unchanged mount in the guest: tmpfs, proc and so on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from hawse.errors import ConfigError
from hawse.json_text import Document
from hawse.link import agreed
from hawse.linux import user_namespaces
from hawse.notes import Note, warning
from hawse.oci.checks import check_options, checked_mount
from hawse.oci.document import is_bind
from hawse.oci.guest import dev_shm, host_sockets, idmap, overlay
from hawse.oci.guest import hugetlbfs as huge
from hawse.oci.guest.bind_sources import DeviceNode, device_node, kernel_view, no_devices, read_only
from hawse.oci.guest.host_sockets import Special, find_special
from hawse.oci.guest.hugetlbfs import Hugetlbfs
from hawse.oci.guest.known_devices import is_known
from hawse.oci.guest.mount_types import check_type
from hawse.oci.guest.share import Share

#: Directories that contain the host's VFIO nodes, and these nodes.
_VFIO_DIRECTORIES = ("/dev", "/dev/vfio", "/dev/vfio/devices")
_VFIO_SHARED = ("/dev/vfio/vfio", "/dev/iommu")
_VFIO_NODE = re.compile(r"/dev/vfio/(?:devices/vfio|noiommu-)?\d+")


@dataclass(frozen=True)
class HostFiles:
    """Questions about the sources of mounts and the paths of namespaces on the host.

    Only ``user_maps`` and ``hugetlbfs`` raise OSError. ``host_name`` is the name of the host; "" means that of the
    running system.
    """

    is_dir: Callable[[str], bool] = os.path.isdir
    exists: Callable[[str], bool] = os.path.exists
    tmpfs_size: Callable[[str], int] = dev_shm.tmpfs_size
    hugetlbfs: Callable[[str], Hugetlbfs | None] = huge.hugetlbfs
    node: Callable[[str], DeviceNode | None] = device_node
    special: Callable[[str], Special | None] = find_special
    user_maps: Callable[[str], idmap.Maps] = user_namespaces.read
    host_name: str = ""


@dataclass(frozen=True)
class BoundNode:
    """A device node that a mount binds, and the entry of linux.devices that replaces the mount.

    ``nodev``: an option of the mount forbids opening device nodes.
    """

    index: int
    source: str
    device: Document
    nodev: bool

    @property
    def destination(self) -> str:
        """Its path in the container."""
        return str(self.device["path"])


@dataclass(frozen=True)
class GuestMount:
    """The plan for one mount of the specification. ``entry`` is the mount in the guest, None for a device node."""

    entry: Document | None
    share: Share | None = None
    socket: Special | None = None
    bound: BoundNode | None = None
    huge: tuple[str, Hugetlbfs] | None = None
    memory: tuple[str, int] | None = None
    page_kib: int = 0
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True)
class GuestMounts:
    """The plan for all mounts.

    ``memory`` maps names of shared-memory file systems to their sizes in bytes. ``huge`` maps names to file systems of
    huge pages, and ``page_sizes`` are the page sizes in KiB of all mounts of hugetlbfs. ``sockets`` are the forwarded
    sockets by the names of their shares.
    """

    entries: list[Document] = field(default_factory=list)
    shares: list[Share] = field(default_factory=list)
    sockets: dict[str, Special] = field(default_factory=dict)
    bound: list[BoundNode] = field(default_factory=list)
    huge: dict[str, Hugetlbfs] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    page_sizes: frozenset[int] = frozenset()
    notes: list[Note] = field(default_factory=list)


@dataclass(frozen=True)
class MountPlanner:
    """Plans the mounts of one container.

    ``bundle`` is the directory of the bundle, ``maps`` the mappings of the container's user namespace, and
    ``forwarded`` the patterns of the host's sockets to which connections are forwarded. ``notified`` is the source of
    the notification socket, which the agent serves in the guest; "" for none.
    """

    bundle: str
    container: str
    maps: idmap.Maps
    forwarded: Sequence[str]
    notified: str
    files: HostFiles

    def plan_all(self, mounts: Sequence[Document]) -> GuestMounts:
        """Plan all mounts. Raises :class:`ConfigError` naming a mount that a guest cannot support."""
        planned = [self.plan(index, mount) for index, mount in enumerate(mounts)]
        return GuestMounts(
            entries=_present(each.entry for each in planned),
            shares=_present(each.share for each in planned),
            sockets={each.share.name: each.socket for each in planned if each.share and each.socket},
            bound=_present(each.bound for each in planned),
            huge=dict(each.huge for each in planned if each.huge),
            memory=dict(each.memory for each in planned if each.memory),
            page_sizes=frozenset(each.page_kib for each in planned if each.page_kib),
            notes=[note for each in planned for note in each.notes],
        )

    def plan(self, index: int, mount: Document) -> GuestMount:
        """Plan one mount. Raises :class:`ConfigError` naming it."""
        where = f"{self.bundle}/config.json: mounts[{index}]"
        bind = is_bind(mount)
        check_options(where, mount.get("options") or ())
        notes: tuple[Note, ...] = ()
        if not bind:
            source = str(mount.get("source") or "")
            node = self.files.node(source) if source.startswith("/") else None
            is_disk = node is not None and node.kind == "b"
            notes = tuple(warning(text) for text in check_type(where, mount, is_disk=is_disk))
        mount = checked_mount(where, mount, bind=bind)
        mount, owners = idmap.take_out(where, mount, self.maps, bind=bind)
        if bind:
            return self._bind(index, where, mount, owners)
        if mount.get("type") == overlay.KIND:
            return self._overlay(index, where, mount, notes)
        return GuestMount(mount, page_kib=huge.mounted_kib(mount), notes=notes)

    def _overlay(self, index: int, where: str, mount: Document, notes: tuple[Note, ...]) -> GuestMount:
        options = mount.get("options") or ()
        top, _ = read_only(options)
        layers, flags = overlay.read(where, options, readonly=top)
        share = Share(
            name=f"mount{index}",
            source=layers.name,
            is_dir=True,
            readonly=top or not layers.upper,
            private=True,
            recursive=False,
            common=True,
            overlay=layers,
        )
        entry = {**mount, "type": "bind", "source": self._in_share(share), "options": ["bind", *flags]}
        return GuestMount(entry, share=share, notes=notes)

    def _bind(self, index: int, where: str, mount: Document, owners: idmap.IdMap | None) -> GuestMount:
        destination = mount["destination"]
        if not mount.get("source"):
            raise ConfigError(
                f"{where}.source: missing",
                hint=f"set it to the directory or file of the host to mount at {destination}",
            )
        source = os.path.normpath(os.path.join(self.bundle, mount["source"]))
        view = kernel_view(source)
        if not self.files.exists(source) and not view:
            raise ConfigError(
                f"{where}.source: {source} does not exist",
                hint=f"create it, or remove the mount at {destination}",
            )
        special = self.files.special(source)
        if special is not None and view.startswith("/dev"):
            view, source = "", special.path
        node = self.files.node(source)
        if node is not None and not _is_guests_own(view, node):
            return GuestMount(None, bound=_bound(index, source, mount, node))
        if pages := self.files.hugetlbfs(source):
            if owners:
                uid, gid = owners.owner(pages.uid, pages.gid)
                pages = replace(pages, uid=uid, gid=gid)
            name = dev_shm.guest_name(source)
            return GuestMount({**mount, "source": f"{agreed.HUGEPAGES}/{name}"}, huge=(name, pages), page_kib=pages.kib)
        if view:
            if owners:
                raise ConfigError(f"{where}.uidMappings: {view[:200]} cannot be mapped", hint="remove them")
            place = f"{where}.source" + (f": {source[:200]} leads to {view[:200]}" if view != source else "")
            return GuestMount({**mount, "source": view}, notes=(warning(_guests_own(place, view)),))
        if os.path.normpath(destination) == dev_shm.DESTINATION and (size := self.files.tmpfs_size(source)):
            name = dev_shm.guest_name(source)
            return GuestMount({**mount, "source": f"{agreed.MEMORY}/{name}"}, memory=(name, size))
        return self._shared(index, where, mount, source, owners, special)

    def _shared(
        self,
        index: int,
        where: str,
        mount: Document,
        source: str,
        owners: idmap.IdMap | None,
        special: Special | None,
    ) -> GuestMount:
        options = mount.get("options") or []
        top, below = read_only(options)
        share = Share(
            name=f"mount{index}",
            source=source,
            is_dir=self.files.is_dir(source),
            readonly=top,
            private=bool({"private", "rprivate"} & set(options)),
            recursive="rbind" in options or "bind" not in options,
            readonly_below=below,
            owners=owners,
            common=True,
        )
        entry = {**mount, "source": self._in_share(share)}
        if special is None or source == self.notified:
            return GuestMount(entry, share=share)
        if text := host_sockets.obstacle(f"{where}.source", special, self.forwarded):
            return GuestMount(entry, share=share, notes=(warning(text),))
        uid, gid = owners.owner(special.uid, special.gid) if owners else (special.uid, special.gid)
        # Each forwarded socket is in a separate mount: no other container can replace it.
        return GuestMount(
            entry | {"source": f"{agreed.SOCKETS}/{self.container}/{share.name}"},
            share=replace(share, common=False),
            # Nothing needs the path any more, and it may contain bytes that JSON cannot represent.
            socket=replace(special, path="", uid=uid, gid=gid),
        )

    def _in_share(self, share: Share) -> str:
        return f"{agreed.SHARE}/{self.container}/{share.name}"


def _present(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if value is not None]


def _bound(index: int, source: str, mount: Document, node: DeviceNode) -> BoundNode:
    """Convert the mount to a device: the device rules apply to it, and the guest creates it by its numbers."""
    device = {
        "path": mount["destination"], "type": node.kind, "major": node.major, "minor": node.minor,
        "fileMode": node.mode, "uid": node.uid, "gid": node.gid,
    }  # fmt: skip
    return BoundNode(index, source, device, no_devices(mount.get("options") or ()))


def _is_guests_own(view: str, node: DeviceNode) -> bool:
    """Whether a path in /dev means the guest's node, or is a VFIO path, which :func:`_guests_own` handles."""
    is_vfio = view in _VFIO_SHARED or bool(_VFIO_NODE.fullmatch(view))
    return bool(view) and (is_vfio or (node.kind == "c" and is_known(node.major, node.minor)))


def _guests_own(where: str, source: str) -> str:
    """The warning about a bind of a path in /proc, /sys or /dev: the guest's path is mounted instead of the host's.

    Raises :class:`ConfigError` for the node of a VFIO device: the guest's node of that number is another device.
    """
    if _VFIO_NODE.fullmatch(source):
        raise ConfigError(
            f"{where}: {source} is a device of the host; in the guest the same path is another device",
            hint="list it in linux.devices: use --device instead of --volume",
        )
    if source in _VFIO_DIRECTORIES:
        return (
            f"{where}: {source} is the guest's: it contains only the VFIO devices of the host that linux.devices lists "
            "[list them there: --device /dev/vfio/NN for each group]"
        )
    return f"{where}: {source[:200]} is the guest's, not the host's [bind files that are not below /proc, /sys or /dev]"
