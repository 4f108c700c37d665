"""The container's files, as programs of the host find them at the pid that an engine is told. Standard library only.

Engines enter the mount and PID namespaces of that pid: `podman cp` to copy files, `podman top` to list processes
(Podman libpod/container_copy_linux.go, container_top_linux.go). There they must find the container and not the host.
So the first process's proxy has namespaces of its own: its root is the container's root file system with the files
that the host shares. File systems that only the guest has are shown empty and read-only: what was copied there would
be lost, and an error is better.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from contextlib import suppress

TYPE_CHECKING = False  # typing's import would cost a proxy a tenth of its time
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

_CLONE_NEWNS, _CLONE_NEWPID = 0x20000, 0x20000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT, _MS_BIND = 1, 2, 4, 8, 32, 4096
_MS_MOVE, _MS_REC, _MS_PRIVATE = 8192, 16384, 1 << 18
_MNT_DETACH = 2
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC, _MOVE_MOUNT_F_EMPTY_PATH = 1, os.O_CLOEXEC, 4
# The last three are the same on every architecture (Linux include/uapi/asm-generic/unistd.h); the first is not.
_SYS_PIVOT_ROOT = {"x86_64": 155}.get(os.uname().machine, 41)
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT = 428, 429
_MAX = 1 << 24
_libc = ctypes.CDLL(None, use_errno=True)


def encode(rootfs: str, mounts: Sequence[dict[str, Any]], *, readonly: bool, directory: str) -> int:
    """A descriptor of the request for :func:`enter`; ``directory`` is the working directory.

    A mount is {"destination", "source", "is_dir", "readonly"};
    without a source it is one of the guest's, of {"type"}."""
    fd = os.memfd_create("view")
    with os.fdopen(os.dup(fd), "w") as file:
        json.dump({"rootfs": rootfs, "readonly": readonly, "mounts": list(mounts), "directory": directory}, file)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


class ChildrenApart:
    """While this lasts, a process that is started is the first of a PID namespace. Of a process of one thread only."""

    def __enter__(self) -> None:
        self._own = os.open("/proc/self/ns/pid", os.O_RDONLY)
        try:
            _check(_libc.unshare(_CLONE_NEWPID))
        except BaseException:
            os.close(self._own)
            raise

    def __exit__(self, *_: object) -> None:
        try:
            _check(_libc.setns(self._own, _CLONE_NEWPID))
        finally:
            os.close(self._own)


def enter(fd: int) -> None:
    """Have the calling process in the container's files, and do without the host's. Raises OSError.

    Mount points and a working directory that are missing are made, as runc makes them (libcontainer/rootfs_linux.go,
    createMountpoint(), prepareRootfs()): the guest cannot where the root file system is read-only.
    """
    wanted = json.loads(os.read(fd, _MAX))
    os.close(fd)
    root = _open_tree(wanted["rootfs"])
    trees = [_open_tree(mount["source"]) if "source" in mount else -1 for mount in wanted["mounts"]]
    _check(_libc.unshare(_CLONE_NEWNS))
    _mount("none", "/", "", _MS_REC | _MS_PRIVATE)
    _move(root, wanted["rootfs"])
    os.chdir(wanted["rootfs"])
    _become_root()
    _forget_files()
    # Clones of shared mounts are shared: what is mounted below them here must not appear on the host.
    _mount("none", "/", "", _MS_REC | _MS_PRIVATE)
    for mount, tree in zip(wanted["mounts"], trees, strict=True):
        try:
            _show(mount, tree)
        except OSError:
            continue  # the guest's runtime finds the same wrong, and tells
    with suppress(OSError):
        os.makedirs(wanted["directory"], exist_ok=True)
    if wanted["readonly"]:
        _mount("none", "/", "", _MS_REMOUNT | _MS_BIND | _MS_RDONLY)


def _become_root() -> None:
    """Have the working directory, a mount, for the namespace's root."""
    if _libc.syscall(_SYS_PIVOT_ROOT, b".", b".") == 0:
        # The old root lies over the new one now (pivot_root(2), NOTES).
        _check(_libc.umount2(b".", _MNT_DETACH))
    else:  # the host runs from its initial RAM disk, which cannot be taken away (pivot_root(2), EINVAL)
        _mount(".", "/", "", _MS_MOVE)
        os.chroot(".")
    os.chdir("/")


def _show(mount: dict[str, Any], tree: int) -> None:
    target = mount["destination"]
    # Symbolic links lead nowhere but into the container's files: they are this process's root.
    if tree >= 0 and not mount["is_dir"]:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT, 0o755))
    else:
        os.makedirs(target, exist_ok=True)
    if tree >= 0:
        _move(tree, target)
        _mount("none", target, "", _MS_REC | _MS_PRIVATE)
        if mount["readonly"]:
            _mount("none", target, "", _MS_REMOUNT | _MS_BIND | _MS_RDONLY)
    elif mount["type"] == "proc":
        _mount("proc", target, "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    else:
        _mount("none", target, "tmpfs", _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)


def _forget_files() -> None:
    """Import nothing from files any more: they would be the container's (as in CVE-2019-14271, of `docker cp`)."""
    sys.path.clear()
    sys.path_hooks.clear()
    sys.path_importer_cache.clear()
    sys.meta_path[:] = [finder for finder in sys.meta_path if getattr(finder, "__name__", "") != "PathFinder"]


def _open_tree(path: str) -> int:
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | _AT_RECURSIVE
    return int(_check(_libc.syscall(_SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(path), flags), path))


def _move(tree: int, target: str) -> None:
    path = os.fsencode(target)
    _check(_libc.syscall(_SYS_MOVE_MOUNT, tree, b"", _AT_FDCWD, path, _MOVE_MOUNT_F_EMPTY_PATH), target)
    os.close(tree)


def _mount(source: str, target: str, kind: str, flags: int) -> None:
    of_type = kind.encode() if kind else None
    _check(_libc.mount(source.encode(), os.fsencode(target), of_type, ctypes.c_ulong(flags), None), target)


def _check(result: int, path: str = "") -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result
