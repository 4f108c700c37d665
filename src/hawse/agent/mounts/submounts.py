"""Mounts of the host in what is shared: each is a file system of its own in the guest, with its own device number.

virtiofsd announces them, and the kernel mounts one when its directory is first opened, not by stat(2) (Linux
Documentation/filesystems/path-lookup.rst, "Automount points"; fs/fuse/dir.c, fuse_dentry_automount()). Mounts that the
host makes later are mounted on their first use. The others are mounted here, before the container is created:

- Where several containers have one directory, each would otherwise mount it for itself, and have inodes of its own.
- A recursive bind brings along what is mounted below with the options that it has under runc.
- The kernel has a bug where the last mount of such a file system goes while a file of it is being read ahead: it finds
  "Busy inodes after unmount", and the process that does it, which is the container's last, hangs for ever.
  A file that was read ahead is released by a request that nobody waits for (fs/fuse/file.c, fuse_readpages_end()), and
  virtio_kill_sb() (fs/fuse/virtio_fs.c) waits for such requests on the last file system of the device only. A program
  that is executed from the share and ends at once is enough. So the mounts here outlive the container's.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress

from hawse.linux import mounts

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


#: How often the host is asked something before a mount goes. It answers in order, and the kernel has twelve requests
#: for reading ahead and for releasing files at the host at once (fs/fuse/inode.c, FUSE_DEFAULT_MAX_BACKGROUND).
_QUESTIONS = 32


def look_at(directory: str, paths: Sequence[str]) -> None:
    """Open each of the paths below a directory, so that the kernel mounts what is to be mounted there.

    Paths that do not exist, that have a link in them, which a container may have made, or that are not directories are
    skipped.
    """
    try:
        root = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    except OSError:
        return
    try:
        for path in paths:
            with suppress(OSError):
                os.close(mounts.open_beneath(root, path, os.O_RDONLY | os.O_DIRECTORY))
    finally:
        os.close(root)


def release(
    directory: str, *, mountinfo: str = "/proc/self/mountinfo", unmount: Callable[[str], None] = mounts.unmount
) -> None:
    """Unmount what is mounted at and below a directory, the innermost first.

    The host keeps each open as long as it is mounted here.

    Mounts of containers are copies in their own namespaces, and stay.
    """
    try:
        with open(mountinfo, "rb") as file:
            points = [line.split(" ")[4] for line in os.fsdecode(file.read()).split("\n") if line]
    except OSError:
        return
    paths = [re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), point) for point in points]
    below = [path for path in paths if path == directory or path.startswith(f"{directory}/")]
    if below:
        _await_releases(below[0])
    for path in reversed(below):  # a mount is listed after the one that it is in
        with suppress(OSError):
            unmount(path)


def _await_releases(path: str) -> None:
    """Let the host answer what the kernel has asked it about files that nobody has open any more."""
    for _ in range(_QUESTIONS):
        with suppress(OSError):
            os.statvfs(path)  # it is never answered from a cache
