"""The view: the container's files, as programs of the host see them in the proxy's namespaces. Standard library only.

Engines enter the mount and PID namespaces of the container's pid on the host, which is the proxy's: `podman cp` to copy
files, `podman top` to list processes (Podman libpod/container_copy_linux.go, container_top_linux.go). There they must
find the container and not the host. So the first process's proxy has private namespaces: its root is the container's
root file system with the files that the host shares. File systems that only the guest has are shown empty and
read-only: files copied there would be lost, so an error is better.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress

from hawse.linux import mounts, user_namespaces

TYPE_CHECKING = False  # typing's import would cost a proxy a tenth of its time
if TYPE_CHECKING:
    from collections.abc import Sequence

    from hawse.json_text import Document

_MAX = 1 << 24
_UNSAFE = mounts.NOSUID | mounts.NODEV | mounts.NOEXEC


def encode(rootfs: str, shown: Sequence[Document], *, readonly: bool, directory: str) -> int:
    """Write the request for :func:`enter` to a new memfd; returns its descriptor.

    ``directory``: the working directory. ``shown``: the mounts, each with "destination". A mount from the host has
    "source", "is_dir", "readonly", and if its owners are mapped "uids", "gids" and "map_below". A mount without a
    source is one of the guest, with its "type"; for the types "directory" and "file" only the mount point is created.
    """
    fd = os.memfd_create("view")
    with os.fdopen(os.dup(fd), "w") as file:
        json.dump({"rootfs": rootfs, "readonly": readonly, "mounts": list(shown), "directory": directory}, file)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def enter(fd: int) -> None:
    """Make the container's files the root of the calling process, instead of the host's. Raises OSError.

    Missing mount points, device node files and a missing working directory are created, as in runc
    (libcontainer/rootfs_linux.go, createMountpoint(), createDevices(), prepareRootfs()): the guest cannot create them
    if the root file system is read-only.
    """
    request = json.loads(os.read(fd, _MAX))
    os.close(fd)
    root = _open_tree(request["rootfs"])
    trees = [_open_mount(mount) if "source" in mount else -1 for mount in request["mounts"]]
    mounts.unshare(mounts.PRIVATE)
    mounts.attach_at(root, request["rootfs"])
    os.close(root)
    mounts.change_root(request["rootfs"])
    _forget_files()
    for mount, tree in zip(request["mounts"], trees, strict=True):
        try:
            _show(mount, tree)
        except OSError:
            continue  # the guest's runtime meets the same error and reports it
    with suppress(OSError):
        os.makedirs(request["directory"], exist_ok=True)
    if request["readonly"]:
        mounts.mount("none", "/", "", mounts.REMOUNT | mounts.BIND | mounts.RDONLY | _UNSAFE)


def _show(mount: Document, tree: int) -> None:
    # Symbolic links cannot leave the container's files, which are this process's root. Resolve them first: if a link's
    # target is missing, the mount point is created at the target.
    target = os.path.realpath(mount["destination"])
    if not os.path.exists(target):
        if mount.get("type") == "file" or (tree >= 0 and not mount["is_dir"]):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o755))
        else:
            os.makedirs(target)
    if tree >= 0:
        if mount["readonly"]:
            mounts.set_attributes(tree, mounts.ATTR_RDONLY, recursive=False)
        mounts.attach_at(tree, target)
        os.close(tree)
    elif mount["type"] in ("directory", "file"):
        return
    elif mount["type"] == "proc":
        mounts.mount("proc", target, "proc", _UNSAFE)
    else:
        mounts.mount("none", target, "tmpfs", mounts.RDONLY | _UNSAFE)


def _forget_files() -> None:
    """Disable imports from files: these would be the container's (compare CVE-2019-14271 of `docker cp`)."""
    sys.path.clear()
    sys.path_hooks.clear()
    sys.path_importer_cache.clear()
    sys.meta_path[:] = [finder for finder in sys.meta_path if getattr(finder, "__name__", "") != "PathFinder"]


def _open_mount(mount: Document) -> int:
    tree = _open_tree(mount["source"])
    if "uids" in mount:
        with suppress(OSError):  # the share fails in the same way, which is reported
            namespace = user_namespaces.create(mount["uids"], mount["gids"])
            try:
                mounts.map_ids(tree, namespace, recursive=mount["map_below"])
            finally:
                os.close(namespace)
    return tree


def _open_tree(path: str) -> int:
    """Copy the mounts at a path, without execution of programs, set-uid bits and access to devices.

    Otherwise `nsenter` into the proxy would run the container's programs as root on the host kernel. Copies of shared
    mounts are private, so that mounts below them do not appear on the host.
    """
    tree = mounts.open_tree(path, recursive=True)
    unsafe = mounts.ATTR_NOSUID | mounts.ATTR_NODEV | mounts.ATTR_NOEXEC
    mounts.set_attributes(tree, unsafe, recursive=True, propagation=mounts.PRIVATE)
    return tree
