"""Sources of bind mounts: which of them are device nodes or the host's views of its kernel, and what of them is
read-only. Pure but for what looks at a path."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_VIEWS = ("/proc", "/sys", "/dev")
#: A file system for ordinary files, although it is below /dev.
_FILES = "/dev/shm"
#: As many links as the kernel follows (Linux include/linux/namei.h, MAXSYMLINKS).
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
    """The device node that a path leads to, None where it leads to anything else."""
    try:
        found = os.stat(source)
    except OSError:
        return None
    if not stat.S_ISBLK(found.st_mode) and not stat.S_ISCHR(found.st_mode):
        return None
    kind = "b" if stat.S_ISBLK(found.st_mode) else "c"
    numbers = os.major(found.st_rdev), os.minor(found.st_rdev)
    return DeviceNode(kind, *numbers, stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid)


def kernel_view(source: str, *, readlink: Callable[[str], str] = os.readlink) -> str:
    """The path in /proc, /sys or /dev that an absolute path leads to, "" where it leads elsewhere.

    Links are followed up to there and no further: ``/proc/self`` is to stay what it is, since the guest's own is meant.
    A link to ``/dev/shm`` leads to the host's: who writes ``/dev/shm`` means the machine's, and who writes
    ``/var/cache`` does not. ``readlink`` raises OSError for what is no link.
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

    Of two options that contradict each other the last counts. The recursive ones are applied after the others (runc
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
    """Whether device nodes of a mount cannot be opened, in the order of :func:`read_only`."""
    found = [option for option in options if option in ("dev", "nodev")]
    found += [option[1:] for option in options if option in ("rdev", "rnodev")]
    return found[-1:] == ["nodev"]


def _is_below(path: str, directories: Sequence[str]) -> bool:
    return any(path == directory or path.startswith(f"{directory}/") for directory in directories)


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]
