"""Where the source of a bind mount is: two sources that are one file, or one in the other, have comparable origins."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence

import msgspec

from hawse.linux import mountinfo
from hawse.linux.mountinfo import Mount


class Origin(msgspec.Struct, frozen=True):
    """A directory or file by its file system's device and its path from the root of that.

    ``below``: what is mounted below it, as "path device root" each, the path relative to it.
    """

    device: str = ""
    path: str = ""
    below: tuple[str, ...] = ()


#: Of a source that no mount explains, as in another root directory. It is like no other.
UNKNOWN = Origin()


def read_origin(source: str) -> Origin:
    """The origin of what a path leads to. Raises OSError."""
    fd = os.open(source, os.O_PATH | os.O_CLOEXEC)
    try:
        path = os.readlink(f"/proc/self/fd/{fd}")
        with open(f"/proc/self/fdinfo/{fd}") as file:
            numbers = [int(line.split()[1]) for line in file if line.startswith("mnt_id:")]
    finally:
        os.close(fd)
    return locate(path, numbers[0] if numbers else -1, mountinfo.read())


def locate(path: str, number: int, mounts: Sequence[Mount]) -> Origin:
    """The origin of a path that is on the mount of this number. Pure."""
    mount = next((mount for mount in mounts if mount.number == number), None)
    if mount is None or not _is_below(path, mount.point):
        return UNKNOWN
    children: dict[int, list[Mount]] = {}
    for other in mounts:
        children.setdefault(other.parent, []).append(other)
    below, waiting = [], [number]
    while waiting:
        for child in children.pop(waiting.pop(), []):
            if child.point != path and _is_below(child.point, path):
                below.append(f"{posixpath.relpath(child.point, path)} {child.device} {child.root}")
            waiting.append(child.number)
    inside = posixpath.relpath(path, mount.point)
    return Origin(mount.device, posixpath.normpath(posixpath.join(mount.root, inside)), tuple(sorted(below)))


def path_from(outer: Origin, inner: Origin) -> str | None:
    """The path from one to another: "." for the same, None where it is not in it. Pure."""
    if not outer.device or outer.device != inner.device or not _is_below(inner.path, outer.path):
        return None
    return posixpath.relpath(inner.path, outer.path)


def _is_below(path: str, directory: str) -> bool:
    return path == directory or path.startswith(f"{directory.rstrip('/')}/")
