"""Device nodes of a specification that cannot be made in the container, but in the guest's /dev and bound from there.

virtiofsd may not make device nodes on a shared file system (docs/security.md). Nodes below the container's own /dev, a
tmpfs, are not affected; a container without a mount on /dev gets such a tmpfs. In a user namespace no file system of
the container may have device nodes: all are bound.
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Sequence
from contextlib import suppress

from hawse.agent.devices import guest_dev
from hawse.agent.system.ids import SAME, Ids
from hawse.errors import VmError

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from hawse.json_text import Document

#: Below the guest's /dev, since the guest's /run is mounted with nodev.
DIRECTORY = "/dev/hawse-nodes"
_TYPES = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK}
#: Beside those, in a user namespace: crun would look for it in the guest.
_PIPE = {"p": stat.S_IFIFO}
#: The mount on /dev of a container whose specification has none. Files of the image's /dev are copied into it.
_DEV = {
    "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
    "options": ["nosuid", "strictatime", "mode=755", "size=65536k", "tmpcopyup"],
}  # fmt: skip
_OPTIONS = ["bind", "nosuid", "noexec"]


def with_bound_nodes(
    spec: Document, directory: str, *, everything: bool = False, root: str = ""
) -> tuple[Document, list[Document]]:
    """The specification with binds of ``<directory>/<number>`` in place of entries of ``linux.devices`` that are on the
    host's files, or in the guest's /dev, which is below ``root``; with ``everything`` of all entries.

    The second value is the replaced entries in the order of their numbers, for :func:`make_nodes`.
    """
    linux = spec.get("linux") or {}
    devices = linux.get("devices") or []
    mounts: list[Document] = list(spec.get("mounts") or ())
    if not any(posixpath.normpath(mount["destination"]) in ("/", "/dev") for mount in mounts):
        mounts.insert(0, dict(_DEV))
    if devices and not everything:  # in a user namespace the owners are ids of that namespace
        devices = [device for device in devices if not _is_there(device, mounts, root)]
    replaced = [d for d in devices if everything or _is_guests(d["path"], mounts) or _is_on_host(d, mounts)]
    binds = [
        {"destination": device["path"], "type": "bind", "source": f"{directory}/{number}", "options": _OPTIONS}
        for number, device in enumerate(replaced)
    ]
    spec = {**spec, "mounts": [*mounts, *binds]}
    if linux.get("devices"):
        remaining = [device for device in devices if device not in replaced]
        spec["linux"] = {**linux, "devices": remaining}
    return spec, replaced


def make_nodes(devices: Sequence[Document], directory: str, ids: Ids = SAME) -> None:
    """Make the nodes of :func:`with_bound_nodes`, with the specification's modes and owners, which ``ids`` translates.

    Raises :class:`VmError` naming the node; :func:`remove_nodes` undoes what was done by then.
    """
    for number, device in enumerate(devices):
        path = f"{directory}/{number}"
        try:
            numbers = os.makedev(device.get("major") or 0, device.get("minor") or 0)
            kind = (_TYPES | _PIPE)[device["type"]]
            mode = device.get("fileMode")
            uid, gid = ids.uid(device.get("uid") or 0), ids.gid(device.get("gid") or 0)
            # The default is runc's (libcontainer/specconv/spec_linux.go, createDevices()).
            _make(path, kind, numbers, mode=0o666 if mode is None else mode & 0o7777, uid=uid, gid=gid)
        except (OSError, OverflowError) as error:
            raise VmError(f"linux.devices: {device['path']}: the guest cannot make the node: {error}") from None


def keep_node(directory: str, numbers: tuple[int, int], *, mode: int, uid: int, gid: int) -> str:
    """A character device for a container that runs, to be bound into it; its path. One that is there is changed.

    Raises OSError. It stays until :func:`remove_nodes`.
    """
    path = f"{directory}/{numbers[0]}:{numbers[1]}"
    with suppress(FileNotFoundError):
        os.unlink(path)
    _make(path, stat.S_IFCHR, os.makedev(*numbers), mode=mode, uid=uid, gid=gid)
    return path


def _make(path: str, kind: int, numbers: int, *, mode: int, uid: int, gid: int) -> None:
    # Root in a user namespace has to pass it.
    os.makedirs(os.path.dirname(path), mode=0o711, exist_ok=True)
    os.mknod(path, kind | 0o600, numbers)
    os.chown(path, uid, gid)
    os.chmod(path, mode)


def remove_nodes(directory: str) -> None:
    """Remove the nodes of a container; without any this does nothing."""
    with suppress(OSError):
        for name in os.listdir(directory):
            os.unlink(f"{directory}/{name}")
        os.rmdir(directory)


def places(devices: Sequence[Document], spec: Document) -> list[str]:
    """Where in the guest's /dev the nodes of :func:`with_bound_nodes` are bound to."""
    paths = (guest_dev.guest_path(device["path"], spec.get("mounts") or ()) for device in devices)
    return [path for path in paths if path]


def _is_there(device: Document, mounts: Sequence[Document], root: str) -> bool:
    path = guest_dev.guest_path(device["path"], mounts)
    return bool(path) and guest_dev.is_same(device, f"{root}{path}")


def _is_guests(path: str, mounts: Sequence[Document]) -> bool:
    """Whether a path is in the guest's /dev: crun makes no nodes in one that is bound, and none of ours may stay."""
    return guest_dev.is_covered(path, mounts) or bool(guest_dev.guest_path(path, mounts))


def _is_on_host(device: Document, mounts: Sequence[Document]) -> bool:
    """Whether the innermost mount around a node is a share of the host's, as the root file system is."""
    return device["type"] in _TYPES and guest_dev.is_bind(guest_dev.innermost(device["path"], mounts))
