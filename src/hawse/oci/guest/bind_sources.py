"""Sources of bind mounts: recognize device nodes and kernel file systems, and read-only and nodev options.

Pure, except for functions that inspect a path.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_VIEWS = ("/proc", "/sys", "/dev")
#: A file system for ordinary files, despite its place below /dev.
_FILES = "/dev/shm"
#: The number of links that the kernel follows (Linux include/linux/namei.h, MAXSYMLINKS).
_MOST_LINKS = 40


@dataclass(frozen=True)
class DeviceNode:
    """A device node: kind ("b" or "c"), numbers, mode and owners."""

    kind: str
    major: int
    minor: int
    mode: int
    uid: int
    gid: int


def device_node(source: str) -> DeviceNode | None:
    """The device node that a path resolves to; None for any other file."""
    try:
        status = os.stat(source)
    except OSError:
        return None
    if not stat.S_ISBLK(status.st_mode) and not stat.S_ISCHR(status.st_mode):
        return None
    kind = "b" if stat.S_ISBLK(status.st_mode) else "c"
    numbers = os.major(status.st_rdev), os.minor(status.st_rdev)
    return DeviceNode(kind, *numbers, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)


def kernel_view(source: str, *, readlink: Callable[[str], str] = os.readlink) -> str:
    """The path in /proc, /sys or /dev that an absolute path leads to; "" if it leads elsewhere.

    Links below these directories are not followed: ``/proc/self`` stays as it is, since it means the guest's.
    ``/dev/shm`` itself means the guest's, but a link to it, such as ``/var/cache``, means the host's directory.
    ``readlink`` raises OSError for a file that is not a link.
    """
    done, rest, links = "", _parts(source), 0
    while rest:
        part = rest.pop(0)
        if part == "..":
            done = os.path.dirname(done).rstrip("/")
            continue
        path = f"{done}/{part}"
        if path in _VIEWS:
            whole = os.path.normpath("/".join([path, *rest]))  # links in there are not followed
            if _is_below(whole, _VIEWS):
                return "" if links and _is_below(whole, (_FILES,)) else whole
            done, rest = "", _parts(whole)
            continue
        try:
            target = readlink(path)
        except OSError:
            done = path
            continue
        links += 1
        if links > _MOST_LINKS:
            return ""
        if target.startswith("/"):
            done = ""
        rest = [*_parts(target), *rest]
    return ""


def read_only(options: Sequence[str]) -> tuple[bool, bool]:
    """Whether a mount is read-only, and whether the mounts below it are as well.

    If two options contradict each other, the last one counts. Recursive options are applied after the others (runc
    libcontainer/specconv/spec_linux.go, parseMountOptions(); libcontainer/rootfs_linux.go, mountToRootfs()).
    """
    top = below = False
    for option in options:
        if option in ("ro", "rw"):
            top = option == "ro"
    for option in options:
        if option in ("rro", "rrw"):
            top = below = option == "rro"
    return top, below


def no_devices(options: Sequence[str]) -> bool:
    """Whether options forbid opening device nodes of a mount; their precedence is that of :func:`read_only`."""
    effective = [option for option in options if option in ("dev", "nodev")]
    effective += [option[1:] for option in options if option in ("rdev", "rnodev")]
    return effective[-1:] == ["nodev"]


def _is_below(path: str, directories: Sequence[str]) -> bool:
    return any(path == directory or path.startswith(f"{directory}/") for directory in directories)


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]
