"""A test's private cache: the host's images and cached results, and separate templates."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable

from demo.rootfs import make
from hawse.cache.results import locked

CACHE = "/var/cache/hawse"


def place(name: str) -> str:
    """The path that :func:`kept` uses for a name."""
    return f"{CACHE}/test-{name}"


def kept(name: str, make: Callable[[str], object]) -> str:
    """The path of an artifact that tests keep in the cache under a name; ``make`` creates it at a given path."""
    path = place(name)
    with locked(f"{path}.lock"):
        if not os.path.exists(path):
            shutil.rmtree(f"{path}.making", ignore_errors=True)
            make(f"{path}.making")
            os.rename(f"{path}.making", path)
    return path


def dpdk_rootfs() -> str:
    """A root file system with Debian's DPDK, like the demo's, but with only the drivers of the tests' NICs.

    DPDK loads every driver in its directory, and each of the 130 takes seconds in a nested VM.
    """

    def unpack(path: str) -> None:
        make(path, cache=CACHE)
        libraries = f"{path}/usr/lib/x86_64-linux-gnu"
        loader = [f"{libraries}/ld-linux-x86-64.so.2", "--library-path", libraries, "--list"]
        words = [*loader, f"{path}/usr/bin/dpdk-testpmd"]
        linked = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
        needed = {name.partition(".")[0] for name in linked} | {"librte_net_e1000", "librte_mempool_ring"}
        for directory, _, names in os.walk(f"{libraries}/dpdk"):
            for name in names:
                if name.partition(".")[0] not in needed:
                    os.unlink(f"{directory}/{name}")

    return kept("dpdk-e1000", unpack)


def own_cache(directory: str) -> str:
    """Create the cache; returns its path."""
    os.makedirs(directory)
    os.symlink(f"{CACHE}/images", f"{directory}/images")
    for answers in ("accel.json", "qemu.json"):
        if os.path.exists(f"{CACHE}/{answers}"):
            shutil.copyfile(f"{CACHE}/{answers}", f"{directory}/{answers}")
    return directory


def templates(cache: str) -> list[str]:
    """The digests of the committed templates."""
    directory = f"{cache}/templates"
    return [name for name in os.listdir(directory) if not name.startswith(".")] if os.path.isdir(directory) else []
