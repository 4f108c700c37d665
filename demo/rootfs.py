"""The demo container's root file system: Debian's dpdk with its dependencies, and busybox as the shell."""

from __future__ import annotations

import os

from hawse.vm.image import packages


def make(rootfs: str, *, cache: str) -> None:
    """Unpack all packages into ``rootfs``, which appears only when it is complete."""
    building = f"{rootfs}.building"
    fetched = packages.fetch(["dpdk-dev", "busybox-static"], cache=cache, progress=print)
    packages.unpack(fetched, building, select=_wanted)
    for directory in ("dev", "proc", "sys", "tmp", "run"):
        os.makedirs(f"{building}/{directory}", exist_ok=True)
    for name in ("sh", "ls", "id", "grep", "timeout"):
        link = f"{building}/usr/bin/{name}"
        if os.path.lexists(link):
            os.unlink(link)
        os.symlink("busybox", link)
    os.rename(building, rootfs)


def _wanted(name: str) -> bool:
    """Whether to unpack a file: programs and shared libraries, but not files for compilers and documentation."""
    return not name.startswith(("usr/share/", "usr/include/", "usr/lib/python", "var/")) and not name.endswith(".a")
