"""Device nodes that cannot be created in the container: created in the guest's /dev and bound into the container.

virtiofsd is not permitted to create device nodes on a shared file system (docs/security.md). Nodes below the
container's own /dev, a tmpfs, are not affected; a container without a mount on /dev gets such a tmpfs. In a user
namespace no file system of the container may contain device nodes, so all nodes are bound.
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
from hawse.oci.document import is_bind

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from hawse.json_text import Document

#: The directory for the nodes. It is below the guest's /dev, because the guest's /run is mounted with nodev.
DIRECTORY = "/dev/hawse-nodes"
_TYPES = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK}
#: Additional type in a user namespace. FIFOs are bound, too, because crun would look for them in the guest.
_PIPE = {"p": stat.S_IFIFO}
#: The mount on /dev for a specification without one. Files of the image's /dev are copied into it.
_DEV = {
    "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
    "options": ["nosuid", "strictatime", "mode=755", "size=65536k", "tmpcopyup"],
}  # fmt: skip
_OPTIONS = ["bind", "nosuid", "noexec"]


def with_bound_nodes(
    spec: Document, directory: str, *, all_nodes: bool = False, root: str = ""
) -> tuple[Document, list[Document]]:
    """Replace entries of ``linux.devices`` by binds of ``<directory>/<number>``.

    The replaced entries are those whose path is on a share of the host or in the guest's /dev, which is below ``root``;
    with ``all_nodes``, all entries. Without it, entries whose node already exists in the guest's /dev are dropped.
    Returns the new specification, and the replaced entries in the order of their numbers, for :func:`create_nodes`.
    """
    linux = spec.get("linux") or {}
    devices = linux.get("devices") or []
    mounts: list[Document] = list(spec.get("mounts") or ())
    if not any(posixpath.normpath(mount["destination"]) in ("/", "/dev") for mount in mounts):
        mounts.insert(0, dict(_DEV))
    if devices and not all_nodes:  # in a user namespace, the owners are ids of that namespace
        devices = [device for device in devices if not _exists(device, mounts, root)]
    replaced = [
        device
        for device in devices
        if all_nodes or _is_in_guest_dev(device["path"], mounts) or _is_on_host(device, mounts)
    ]
    binds = [
        {"destination": device["path"], "type": "bind", "source": f"{directory}/{number}", "options": _OPTIONS}
        for number, device in enumerate(replaced)
    ]
    spec = {**spec, "mounts": [*mounts, *binds]}
    if linux.get("devices"):
        remaining = [device for device in devices if device not in replaced]
        spec["linux"] = {**linux, "devices": remaining}
    return spec, replaced


def create_nodes(devices: Sequence[Document], directory: str, ids: Ids = SAME) -> None:
    """Create the nodes of :func:`with_bound_nodes` with the specification's modes and owners, translated by ``ids``.

    Raises :class:`VmError` naming the node; then call :func:`remove_nodes` to remove the nodes that were created.
    """
    for number, device in enumerate(devices):
        path = f"{directory}/{number}"
        try:
            numbers = os.makedev(device.get("major") or 0, device.get("minor") or 0)
            kind = (_TYPES | _PIPE)[device["type"]]
            mode = device.get("fileMode")
            uid, gid = ids.uid(device.get("uid") or 0), ids.gid(device.get("gid") or 0)
            # The default is runc's (libcontainer/specconv/spec_linux.go, createDevices()).
            _create(path, kind, numbers, mode=0o666 if mode is None else mode & 0o7777, uid=uid, gid=gid)
        except (OSError, OverflowError) as error:
            raise VmError(f"linux.devices: {device['path']}: the guest cannot create the node: {error}") from None


def create_node(directory: str, numbers: tuple[int, int], *, mode: int, uid: int, gid: int) -> str:
    """Create a character device to be bound into a running container; replace an existing one. Returns its path.

    It exists until :func:`remove_nodes`. Raises OSError.
    """
    path = f"{directory}/{numbers[0]}:{numbers[1]}"
    with suppress(FileNotFoundError):
        os.unlink(path)
    _create(path, stat.S_IFCHR, os.makedev(*numbers), mode=mode, uid=uid, gid=gid)
    return path


def _create(path: str, kind: int, numbers: int, *, mode: int, uid: int, gid: int) -> None:
    # The root of a user namespace needs permission to search the directory.
    os.makedirs(os.path.dirname(path), mode=0o711, exist_ok=True)
    os.mknod(path, kind | 0o600, numbers)
    os.chown(path, uid, gid)
    os.chmod(path, mode)


def remove_nodes(directory: str) -> None:
    """Remove the nodes of a container, if it has any."""
    with suppress(OSError):
        for name in os.listdir(directory):
            os.unlink(f"{directory}/{name}")
        os.rmdir(directory)


def mount_points(devices: Sequence[Document], spec: Document) -> list[str]:
    """The paths in the guest's /dev to which the nodes of :func:`with_bound_nodes` are bound."""
    paths = (guest_dev.guest_path(device["path"], spec.get("mounts") or ()) for device in devices)
    return [path for path in paths if path]


def _exists(device: Document, mounts: Sequence[Document], root: str) -> bool:
    path = guest_dev.guest_path(device["path"], mounts)
    return bool(path) and guest_dev.is_same(device, f"{root}{path}")


def _is_in_guest_dev(path: str, mounts: Sequence[Document]) -> bool:
    """Whether a path is in the guest's /dev: crun creates no nodes in a bound /dev, and hawse must leave none in it."""
    return guest_dev.is_covered(path, mounts) or bool(guest_dev.guest_path(path, mounts))


def _is_on_host(device: Document, mounts: Sequence[Document]) -> bool:
    """Whether the innermost mount around a node is a share of the host, like the root file system."""
    return device["type"] in _TYPES and is_bind(guest_dev.innermost(device["path"], mounts))
