"""The container's files, as programs of the host find them at the pid that an engine is told. Standard library only.

Engines enter the mount and PID namespaces of that pid: `podman cp` to copy files, `podman top` to list processes
(Podman libpod/container_copy_linux.go, container_top_linux.go). There they must find the container and not the host.
So the first process's proxy has namespaces of its own: its root is the container's root file system with the files
that the host shares. File systems that only the guest has are shown empty and read-only: what was copied there would
be lost, and an error is better.
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
    from typing import Any

_MAX = 1 << 24
_UNSAFE = mounts.NOSUID | mounts.NODEV | mounts.NOEXEC


def encode(rootfs: str, shown: Sequence[dict[str, Any]], *, readonly: bool, directory: str) -> int:
    """A descriptor of the request for :func:`enter`; ``directory`` is the working directory.

    A mount is {"destination", "source", "is_dir", "readonly"}, and where its owners are mapped "uids", "gids" and
    "map_below"; without a source it is one of the guest's, of {"type"}. The types "directory" and "file" are mount
    points only."""
    fd = os.memfd_create("view")
    with os.fdopen(os.dup(fd), "w") as file:
        json.dump({"rootfs": rootfs, "readonly": readonly, "mounts": list(shown), "directory": directory}, file)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def enter(fd: int) -> None:
    """Have the calling process in the container's files, and do without the host's. Raises OSError.

    Mount points, places of device nodes and a working directory that are missing are made, as runc makes them
    (libcontainer/rootfs_linux.go, createMountpoint(), createDevices(), prepareRootfs()): the guest cannot where the
    root file system is read-only.
    """
    wanted = json.loads(os.read(fd, _MAX))
    os.close(fd)
    root = _open_tree(wanted["rootfs"])
    trees = [_open_mount(mount) if "source" in mount else -1 for mount in wanted["mounts"]]
    mounts.unshare(mounts.PRIVATE)
    mounts.attach_at(root, wanted["rootfs"])
    os.close(root)
    mounts.change_root(wanted["rootfs"])
    _forget_files()
    for mount, tree in zip(wanted["mounts"], trees, strict=True):
        try:
            _show(mount, tree)
        except OSError:
            continue  # the guest's runtime finds the same wrong, and tells
    with suppress(OSError):
        os.makedirs(wanted["directory"], exist_ok=True)
    if wanted["readonly"]:
        mounts.mount("none", "/", "", mounts.REMOUNT | mounts.BIND | mounts.RDONLY | _UNSAFE)


def _show(mount: dict[str, Any], tree: int) -> None:
    # Symbolic links lead nowhere but into the container's files: they are this process's root. They are resolved first,
    # since one that leads to nothing is a mount point too, which is made where it leads.
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
    """Import nothing from files any more: they would be the container's (as in CVE-2019-14271, of `docker cp`)."""
    sys.path.clear()
    sys.path_hooks.clear()
    sys.path_importer_cache.clear()
    sys.meta_path[:] = [finder for finder in sys.meta_path if getattr(finder, "__name__", "") != "PathFinder"]


def _open_mount(mount: dict[str, Any]) -> int:
    tree = _open_tree(mount["source"])
    if "uids" in mount:
        with suppress(OSError):  # the share cannot be mapped either, and that is an error
            namespace = user_namespaces.create(mount["uids"], mount["gids"])
            try:
                mounts.map_ids(tree, namespace, recursive=mount["map_below"])
            finally:
                os.close(namespace)
    return tree


def _open_tree(path: str) -> int:
    """A copy of the mounts at a path, of which no program is executed and no device opened, by whoever comes here.

    `nsenter` of the process would else run the container's programs as root on the host's kernel. Copies of shared
    mounts are private: what is mounted below them here must not appear on the host.
    """
    tree = mounts.open_tree(path, recursive=True)
    unsafe = mounts.ATTR_NOSUID | mounts.ATTR_NODEV | mounts.ATTR_NOEXEC
    mounts.set_attributes(tree, unsafe, recursive=True, propagation=mounts.PRIVATE)
    return tree
