"""Binds of files below a directory that is already shared for another mount (:mod:`hawse.monitor.share.exports`).

Containers can write to such a directory. So the agent resolves the path instead of crun, beneath the share and without
following links: a symbolic link that a container has created must not lead to files of another container or the guest.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import suppress

from hawse.errors import VmError
from hawse.linux import mounts


def bind(binds: Iterable[tuple[str, str, int]], *, share: str, directory: str, inodes: bool = True) -> None:
    """Bind files of the share to ``<directory>/<name>``, from which crun binds them.

    ``binds`` are the name, the path in the share and the inode of each file. ``inodes``: inode numbers of the share are
    the host's. With 9p they differ (Linux fs/9p/v9fs.h, QID2INO(); QEMU 7.2 hw/9pfs/9p.c, qid_path_suffixmap()), so
    only the path is checked.

    Raises :class:`VmError` if a path does not lead to its inode; then call :func:`unbind` to undo the earlier binds.
    """
    for name, path, inode in binds:
        try:
            root = os.open(share, os.O_PATH | os.O_DIRECTORY)
            try:
                fd = mounts.open_beneath(root, path)
            finally:
                os.close(root)
            try:
                _bind(fd, inode if inodes else 0, f"{directory}/{name}")
            finally:
                os.close(fd)
        except OSError as error:
            raise VmError(
                f"mount {name} of the container cannot be bound from {path[:200]} in the share: {error.strerror}",
                hint="another container may have replaced a part of the path: create the container again",
            ) from None


def unbind(directory: str) -> None:
    """Undo :func:`bind`. Binds that crun has created from these stay in the container."""
    with suppress(OSError):
        for name in os.listdir(directory):
            path = f"{directory}/{name}"
            with suppress(OSError):
                mounts.unmount(path)
            with suppress(OSError):
                (os.rmdir if os.path.isdir(path) else os.unlink)(path)
        os.rmdir(directory)


def _bind(fd: int, inode: int, target: str) -> None:
    status = os.fstat(fd)
    if inode and status.st_ino != inode:
        raise OSError(0, "the path leads to another file now")
    os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
    if stat.S_ISDIR(status.st_mode):
        os.mkdir(target)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    mounts.mount(f"/proc/self/fd/{fd}", target, "", mounts.BIND | mounts.REC)
