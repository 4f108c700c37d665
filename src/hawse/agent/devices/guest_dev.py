"""Device nodes of a container that shows the guest's own /dev, or a directory of it.

What the guest's kernel puts there is what all containers with such a mount see, so nothing is written there:

- Nodes are bound to their places. A place that is missing is an empty file in the guest's /dev for as long as a
  container uses it.
- Over the directory of VFIO's nodes lies a tmpfs with the nodes of the container. There a file could have the name of a
  group that the guest gets later, and the kernel would make no node for that (Linux drivers/base/devtmpfs.c,
  handle_create()). Another lies over the directory of the list of devices.
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

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from hawse.json_text import Document

_DEV, _VFIO, _LIST = "/dev", "/dev/vfio", posixpath.dirname(DEVICES_FILE)
_COVER = {"type": "tmpfs", "source": "hawse-nodes", "options": ["nosuid", "noexec", "mode=755", "size=64k"]}
_ROOT: Document = {"type": "bind", "destination": "/"}
#: How many containers use a place, and the lock of that.
_uses: Counter[str] = Counter()
_lock = threading.Lock()


def innermost(path: str, mounts: Sequence[Document]) -> Document:
    """The mount that a path is on: the last of those at the deepest place around it."""
    path = posixpath.normpath(path)
    found = _ROOT
    for mount in mounts:
        where = posixpath.normpath(mount["destination"])
        around = path.startswith(f"{where.rstrip('/')}/")
        if around and len(where) >= len(posixpath.normpath(found["destination"])):
            found = mount
    return found


def is_bind(mount: Document) -> bool:
    """Whether a mount of a specification is a bind."""
    return mount.get("type") == "bind" or bool({"bind", "rbind"} & set(mount.get("options") or ()))


def guest_path(path: str, mounts: Sequence[Document]) -> str:
    """What of the guest's /dev a container has at a path; "" where it has something else."""
    mount = innermost(path, mounts)
    source = mount.get("source") or ""
    if not is_bind(mount) or not (source == _DEV or source.startswith(f"{_DEV}/")):
        return ""
    return posixpath.join(source, posixpath.relpath(posixpath.normpath(path), posixpath.normpath(mount["destination"])))


def with_covers(spec: Document, *, container_node: bool) -> tuple[Document, list[str]]:
    """The specification with a tmpfs over each directory of the guest's /dev that the container must not share.

    A container must not share the directory of VFIO's nodes, even if it has none: groups may be attached to it.

    ``container_node``: the guest has /dev/vfio/vfio, which such a container keeps. The second value is the guest's
    directories that are covered.
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
    """Whether a path is in a directory of :func:`with_covers`."""
    return innermost(path, mounts).get("source") == _COVER["source"]


def is_same(device: Document, path: str) -> bool:
    """Whether the node at a path is as the entry of ``linux.devices`` asks for it."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    kinds = {"c": stat.S_ISCHR, "u": stat.S_ISCHR, "b": stat.S_ISBLK}
    mode = device.get("fileMode")
    return (
        device["type"] in kinds
        and kinds[device["type"]](found.st_mode)
        and found.st_rdev == os.makedev(device.get("major") or 0, device.get("minor") or 0)
        and stat.S_IMODE(found.st_mode) == (0o666 if mode is None else mode & 0o7777)
        and (found.st_uid, found.st_gid) == (device.get("uid") or 0, device.get("gid") or 0)
    )


def make_directories(paths: Sequence[str], *, root: str = "/") -> None:
    """Make directories, which stay. Root of a user namespace could not. Raises :class:`StateError`."""
    for path in paths:
        os.close(open_parent(root or "/", f"{path}/", make=True))


def make_places(paths: Sequence[str], *, root: str = "/") -> None:
    """Make empty files where nothing is. Raises :class:`StateError`; :func:`remove_places` undoes it."""
    with _lock:
        for path in paths:
            _uses[path] += 1
        for path in paths:
            # A container that can write to /dev may have planted links there.
            parent = open_parent(root or "/", path, make=True)
            try:
                flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
                os.close(os.open(os.path.basename(path), flags, 0o600, dir_fd=parent))
            except FileExistsError:
                continue
            except OSError as error:
                raise StateError(f"{path}: there cannot be a node in the guest: {error.strerror}") from None
            finally:
                os.close(parent)


def remove_places(paths: Sequence[str], *, root: str = "/") -> None:
    """Remove those that no other container uses. What is mounted on a file that is removed would go with it."""
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
                    found = os.stat(name, dir_fd=parent, follow_symlinks=False)
                    if stat.S_ISREG(found.st_mode) and not found.st_size:
                        os.unlink(name, dir_fd=parent)
                finally:
                    os.close(parent)
