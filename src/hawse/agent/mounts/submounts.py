"""Mounts of the host below the share: in the guest, each is a separate file system with its own device number.

virtiofsd announces these submounts. The kernel mounts one when its directory is first opened, but not for stat(2)
(Linux Documentation/filesystems/path-lookup.rst, "Automount points"; fs/fuse/dir.c, fuse_dentry_automount()). A mount
that the host creates later is mounted when it is first used. The others are mounted here, before the container is
created, for these reasons:

- If several containers share a directory, each would otherwise mount it separately and see different inodes.
- A recursive bind then includes the submounts, with the options that they get under runc.
- A kernel bug occurs if the last mount of such a file system is unmounted during readahead of one of its files: the
  kernel reports "Busy inodes after unmount", and the process that unmounts, the last one of the container, hangs
  forever. A file is released after readahead by an asynchronous request (fs/fuse/file.c, fuse_readpages_end()), but
  virtio_kill_sb() (fs/fuse/virtio_fs.c) waits for such requests only at the last file system of the device. Executing
  a program from the share that ends at once is enough. So the mounts here must outlive those of the container.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress

from hawse.linux import mounts

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


#: Requests to the host before an unmount. The host answers in order. Twelve background requests (readahead, release of
#: files) can be pending (fs/fuse/inode.c, FUSE_DEFAULT_MAX_BACKGROUND); 32 leave a margin.
_REQUESTS = 32


def trigger(directory: str, paths: Sequence[str]) -> None:
    """Open each of the paths below a directory, so that the kernel mounts the submounts at these paths.

    A path is skipped if it does not exist, is not a directory, or contains a symbolic link, which a container may have
    created.
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
    """Unmount all mounts at and below a directory, the innermost first, so that the host can close them.

    Mounts in the containers' namespaces are copies, and stay.
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
    for path in reversed(below):  # a mount is listed after the mount that contains it
        with suppress(OSError):
            unmount(path)


def _await_releases(path: str) -> None:
    """Wait until the host has answered the kernel's pending requests that release closed files."""
    for _ in range(_REQUESTS):
        with suppress(OSError):
            os.statvfs(path)  # never answered from a cache
