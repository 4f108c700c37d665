"""Binds of what is below a directory that is in the share for another mount, too (:mod:`hawse.monitor.share.exports`).

Containers can write to such a directory. So its path is resolved here, beneath the share and without links, and not by
crun: a link that a container has planted must not lead to another container's files, or to the guest's own.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import suppress

from hawse.errors import VmError
from hawse.linux import mounts


def bind(binds: Iterable[tuple[str, str, int]], *, share: str, directory: str, inodes: bool = True) -> None:
    """Mount each of name, path in the share and inode at ``<directory>/<name>``, for crun to bind from.

    ``inodes``: the share has the host's inode numbers. 9p has others (Linux fs/9p/v9fs.h, QID2INO(); QEMU 7.2
    hw/9pfs/9p.c, qid_path_suffixmap()), so only the path is checked there.

    Raises :class:`VmError` where a path does not lead to that inode; :func:`unbind` undoes what was done by then.
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
                f"mount {name} of the container is {path[:200]} in the share: {error.strerror}",
                hint="another container has replaced a part of the path; create the container again",
            ) from None


def unbind(directory: str) -> None:
    """Undo :func:`bind`; what crun has bound stays in its container."""
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
        raise OSError(0, "it is another file now")
    os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
    if stat.S_ISDIR(status.st_mode):
        os.mkdir(target)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    mounts.mount(f"/proc/self/fd/{fd}", target, "", mounts.BIND | mounts.REC)
