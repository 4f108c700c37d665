"""Origins of bind mount sources. They show whether two sources are the same file, or one contains the other."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator, Sequence

import msgspec

from hawse.linux import mountinfo
from hawse.linux.mountinfo import Mount


class Below(msgspec.Struct, frozen=True, order=True, array_like=True):
    """A mount below a directory: its mount point relative to the directory, its device, the directory of the device
    that is mounted, and whether it is read-only."""

    point: str
    device: str
    root: str
    readonly: bool = False


class Origin(msgspec.Struct, frozen=True):
    """A directory or file, identified by the device of its file system and its path from the root of the file system.

    ``below`` are the mounts below it. ``readonly``: its mount is read-only. ``inode`` is its device number and inode
    number, which also identify it after a rename and through another hard link; (0, 0) if they are unknown.
    """

    device: str = ""
    path: str = ""
    below: tuple[Below, ...] = ()
    readonly: bool = False
    inode: tuple[int, int] = (0, 0)


#: The origin of a source on an unknown mount, for example in another root directory. It equals no other origin.
UNKNOWN = Origin()


def read_origin(source: str) -> Origin:
    """The origin of the file that a path resolves to. Raises OSError."""
    fd = os.open(source, os.O_PATH | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        path = os.readlink(f"/proc/self/fd/{fd}")
        with open(f"/proc/self/fdinfo/{fd}") as file:
            numbers = [int(line.split()[1]) for line in file if line.startswith("mnt_id:")]
    finally:
        os.close(fd)
    origin = locate(path, numbers[0] if numbers else -1, mountinfo.read())
    return msgspec.structs.replace(origin, inode=(status.st_dev, status.st_ino)) if origin.device else origin


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
                below.append(Below(posixpath.relpath(child.point, path), child.device, child.root, child.readonly))
            waiting.append(child.number)
    inside = posixpath.relpath(path, mount.point)
    where = posixpath.normpath(posixpath.join(mount.root, inside))
    return Origin(mount.device, where, tuple(sorted(below)), mount.readonly)


def path_from(outer: Origin, inner: Origin) -> str | None:
    """The path from ``outer`` to ``inner``: "." if they are the same, None if ``inner`` is not inside. Pure."""
    if not outer.device or not inner.device:
        return None
    if outer.inode == inner.inode != (0, 0):
        return "."
    if outer.device != inner.device or not _is_below(inner.path, outer.path):
        return None
    return posixpath.relpath(inner.path, outer.path)


def paths_through(outer: Origin, inner: Origin) -> Iterator[tuple[Below, str]]:
    """The paths from ``outer`` to ``inner`` that lead through a mount below ``outer``. Pure."""
    for mount in outer.below:
        if mount.device == inner.device and _is_below(inner.path, mount.root):
            inside = posixpath.relpath(inner.path, mount.root)
            yield mount, posixpath.normpath(posixpath.join(mount.point, inside))


def _is_below(path: str, directory: str) -> bool:
    return path == directory or path.startswith(f"{directory.rstrip('/')}/")
