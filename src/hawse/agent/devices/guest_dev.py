"""Device nodes of a container whose mounts show the guest's /dev or a directory of it.

All containers with such a mount see the same devtmpfs, so nodes are not created in it:

- Nodes are bound to mount points. A missing mount point is created as an empty file in the guest's /dev, and exists
  while a container uses it.
- A tmpfs with the container's nodes is mounted over the directory of the VFIO nodes. Otherwise a file could have the
  name of a group that the guest gets later, and the kernel would not create the group's node (Linux
  drivers/base/devtmpfs.c, handle_create()). Another tmpfs is mounted over the directory of the device map.
"""

from __future__ import annotations

import os
import posixpath
import stat
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

from hawse.agent.devices.live_nodes import open_parent
from hawse.agent.devices.map_file import DEVICES_FILE
from hawse.errors import StateError
from hawse.oci.document import is_bind

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from hawse.json_text import Document

_DEV, _VFIO, _LIST = "/dev", "/dev/vfio", posixpath.dirname(DEVICES_FILE)
_COVER = {"type": "tmpfs", "source": "hawse-nodes", "options": ["nosuid", "noexec", "mode=755", "size=64k"]}
_ROOT: Document = {"type": "bind", "destination": "/"}
#: The number of containers that use each mount point, and the lock for it.
_uses: Counter[str] = Counter()
_lock = threading.Lock()


def innermost(path: str, mounts: Sequence[Document]) -> Document:
    """The mount that a path is on: the last one at the deepest destination that contains it."""
    path = posixpath.normpath(path)
    deepest = _ROOT
    for mount in mounts:
        where = posixpath.normpath(mount["destination"])
        contains = path.startswith(f"{where.rstrip('/')}/")
        if contains and len(where) >= len(posixpath.normpath(deepest["destination"])):
            deepest = mount
    return deepest


def guest_path(path: str, mounts: Sequence[Document]) -> str:
    """The path in the guest's /dev that a container sees at ``path``; "" if that is not in the guest's /dev."""
    mount = innermost(path, mounts)
    source = mount.get("source") or ""
    if not is_bind(mount) or not (source == _DEV or source.startswith(f"{_DEV}/")):
        return ""
    return posixpath.join(source, posixpath.relpath(posixpath.normpath(path), posixpath.normpath(mount["destination"])))


def with_covers(spec: Document, *, container_node: bool) -> tuple[Document, list[str]]:
    """Mount a tmpfs over each directory of the guest's /dev that the container must not share.

    A container must not share the directory of VFIO nodes, even if it has no groups: groups may be attached to it.

    ``container_node``: the guest has /dev/vfio/vfio, so bind it into the tmpfs for a container that would see it.
    Returns the new specification, and the guest's directories that are covered.
    """
    mounts: list[Document] = list(spec.get("mounts") or ())
    paths = [device["path"] for device in (spec.get("linux") or {}).get("devices") or ()]
    covered = []
    for path, directory in [*((path, _VFIO) for path in [*paths, f"{_VFIO}/later"]), (DEVICES_FILE, _LIST)]:
        if not guest_path(path, mounts).startswith(f"{directory}/"):
            continue
        under = innermost(path, mounts)
        where, source = posixpath.normpath(under["destination"]), posixpath.normpath(under["source"])
        if source != directory and not source.startswith(f"{directory}/"):
            where = posixpath.join(where, posixpath.relpath(directory, source))
        new = [{"destination": where, **_COVER}]
        node = f"{where}/vfio"
        if container_node and guest_path(node, mounts) == f"{_VFIO}/vfio" and node not in paths:
            options = ["bind", "nosuid", "noexec"]
            new.append({"destination": node, "type": "bind", "source": f"{_VFIO}/vfio", "options": options})
        place = mounts.index(under) + 1
        mounts[place:place] = new
        covered.append(directory)
    return ({**spec, "mounts": mounts} if covered else spec), covered


def is_covered(path: str, mounts: Sequence[Document]) -> bool:
    """Whether a path is in a directory that :func:`with_covers` has covered."""
    return innermost(path, mounts).get("source") == _COVER["source"]


def is_same(device: Document, path: str) -> bool:
    """Whether type, numbers, mode and owners of the node at a path are those of an entry of ``linux.devices``."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    kinds = {"c": stat.S_ISCHR, "u": stat.S_ISCHR, "b": stat.S_ISBLK}
    mode = device.get("fileMode")
    return (
        device["type"] in kinds
        and kinds[device["type"]](status.st_mode)
        and status.st_rdev == os.makedev(device.get("major") or 0, device.get("minor") or 0)
        and stat.S_IMODE(status.st_mode) == (0o666 if mode is None else mode & 0o7777)
        and (status.st_uid, status.st_gid) == (device.get("uid") or 0, device.get("gid") or 0)
    )


def create_directories(paths: Sequence[str], *, root: str = "/") -> None:
    """Create directories, which are not removed. A user namespace's root could not create them. Raises StateError."""
    for path in paths:
        os.close(open_parent(root or "/", f"{path}/", make=True))


def create_mount_points(paths: Sequence[str], *, root: str = "/") -> None:
    """Create empty files at paths that do not exist. Raises StateError; :func:`remove_mount_points` undoes it."""
    with _lock:
        for path in paths:
            _uses[path] += 1
        for path in paths:
            # A container that can write to /dev may have created symbolic links in it.
            parent = open_parent(root or "/", path, make=True)
            try:
                flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
                os.close(os.open(os.path.basename(path), flags, 0o600, dir_fd=parent))
            except FileExistsError:
                continue
            except OSError as error:
                problem = "the guest cannot create a mount point for the node"
                raise StateError(f"{path}: {problem}: {error.strerror}") from None
            finally:
                os.close(parent)


def remove_mount_points(paths: Sequence[str], *, root: str = "/") -> None:
    """Remove mount points that no other container uses: removing a file also removes the mounts on it."""
    with _lock:
        for path in paths:
            _uses[path] -= 1
            if _uses[path] > 0:
                continue
            del _uses[path]
            with suppress(StateError, OSError):
                parent = open_parent(root or "/", path, make=False)
                try:
                    name = os.path.basename(path)
                    status = os.stat(name, dir_fd=parent, follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode) and not status.st_size:
                        os.unlink(name, dir_fd=parent)
                finally:
                    os.close(parent)
