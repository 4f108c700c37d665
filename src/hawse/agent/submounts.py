"""Mounts of the host in what is shared: each is a file system of its own in the guest, with its own device number.

virtiofsd announces them, and the kernel mounts one when its directory is first opened, not by stat(2) (Linux
Documentation/filesystems/path-lookup.rst, "Automount points"; fs/fuse/dir.c, fuse_dentry_automount()). A bind of a
directory opens it. What is mounted below is looked at before the container is created, so that a recursive bind brings
it along with the options that it has under runc. Mounts that the host makes later are mounted on their first use.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress

from hawse.agent import syscalls

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def look_at(directory: str, paths: Sequence[str]) -> None:
    """Have the kernel mount each of the paths below a directory. One that has gone or is no directory is none."""
    for path in paths:
        with suppress(OSError):
            os.close(os.open(f"{directory}/{path}", os.O_RDONLY | os.O_DIRECTORY))


def release(
    directory: str, *, mountinfo: str = "/proc/self/mountinfo", unmount: Callable[[str], None] = syscalls.unmount
) -> None:
    """Unmount what is mounted at and below a directory, the innermost first.

    The host keeps each open as long as it is mounted here.

    Mounts of containers are copies in their own namespaces, and stay.
    """
    try:
        with open(mountinfo, encoding="utf-8", errors="surrogateescape") as file:
            points = [line.split(" ")[4] for line in file]
    except OSError:
        return
    for point in reversed(points):  # a mount is listed after the one that it is in
        path = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), point)
        if path == directory or path.startswith(f"{directory}/"):
            with suppress(OSError):
                unmount(path)
