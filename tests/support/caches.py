"""A cache of a test's own: the machine's images and answers, and templates of nobody else."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

from demo.rootfs import make
from hawse.vm.cache import alone

CACHE = "/var/cache/hawse"


def kept(name: str, make: Callable[[str], object]) -> str:
    """The path of what tests keep in the cache by a name; ``make`` puts it at the path that it is given."""
    path = f"{CACHE}/test-{name}"
    with alone(f"{path}.lock"):
        if not os.path.exists(path):
            shutil.rmtree(f"{path}.making", ignore_errors=True)
            make(f"{path}.making")
            os.rename(f"{path}.making", path)
    return path


def dpdk_rootfs() -> str:
    """A root file system with Debian's DPDK, as the demo's."""
    return kept("dpdk", lambda path: make(path, cache=CACHE))


def own_cache(directory: str) -> str:
    """Make it; its path."""
    os.makedirs(directory)
    os.symlink(f"{CACHE}/images", f"{directory}/images")
    for answers in ("accel.json", "qemu.json"):
        if os.path.exists(f"{CACHE}/{answers}"):
            shutil.copyfile(f"{CACHE}/{answers}", f"{directory}/{answers}")
    return directory


def templates(cache: str) -> list[str]:
    """The digests of the templates that others can see."""
    directory = f"{cache}/templates"
    return [name for name in os.listdir(directory) if not name.startswith(".")] if os.path.isdir(directory) else []
