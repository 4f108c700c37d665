"""Sources of bind mounts: which of them are the host's views of its kernel, and what of them is read-only. Pure but
for its predicate."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

_VIEWS = ("/proc", "/sys", "/dev")
#: As many links as the kernel follows (Linux include/linux/namei.h, MAXSYMLINKS).
_MOST_LINKS = 40


def kernel_view(source: str, *, readlink: Callable[[str], str] = os.readlink) -> str:
    """The path in /proc, /sys or /dev that an absolute path leads to, "" where it leads elsewhere.

    Links are followed up to there and no further: ``/proc/self`` is to stay what it is, since the guest's own is meant.
    ``readlink`` raises OSError for what is no link.
    """
    done, rest, links = "", _parts(source), 0
    while rest:
        path = f"{done}/{rest.pop(0)}"
        if path in _VIEWS:
            whole = os.path.normpath("/".join([path, *rest]))
            if any(whole == view or whole.startswith(f"{view}/") for view in _VIEWS):
                return whole
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
        base = "" if target.startswith("/") else done
        done, rest = "", _parts(os.path.normpath("/".join([base or "/", target, *rest])))
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


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part]
