"""A kernel with VFIO's device files, for the lab and for guests: no kernel of Debian's has CONFIG_IOMMUFD.

``python -m tests.lab.kernel`` is `make lab-kernel`: it builds Debian 13's source with kernel.config beside this file,
everything built in, and keeps kernel and modules directory in the cache. Tests ask :func:`find`, and are skipped where
nobody has built it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

from hawse.vm import packages
from tests.support.caches import CACHE
from tests.support.suites import apt_options

_CONFIG = os.path.join(os.path.dirname(os.path.abspath(__file__)), "kernel.config")
_SUITE, _SOURCE = "trixie", "linux-source-6.12"
MISSING = "needs the kernel of `make lab-kernel`"


@dataclass(frozen=True)
class Kernel:
    """As image.kernel and image.modules want it: a bzImage, and its /lib/modules/<release>."""

    image: str
    modules: str


def find() -> Kernel | None:
    """The kernel, where it was built from this configuration."""
    directory = _place()
    if not os.path.exists(f"{directory}/bzImage"):
        return None
    [release] = os.listdir(f"{directory}/modules")
    return Kernel(f"{directory}/bzImage", f"{directory}/modules/{release}")


def build() -> None:
    """Build it: with two processors about ten minutes, and 3 GiB of disk while it goes."""
    final = _place()
    os.makedirs(os.path.dirname(final), exist_ok=True)
    fetched = packages.fetch([_SOURCE], cache=f"{CACHE}/{_SUITE}", progress=print, options=apt_options(_SUITE))
    [source] = [package for package in fetched if package.name == _SOURCE]
    with tempfile.TemporaryDirectory(dir=os.path.dirname(final)) as work:
        print(f"unpacking Linux {source.version}")
        packages.unpack([source], work, wanted=lambda name: name.endswith(".tar.xz"))
        archive = f"{work}/usr/src/{_SOURCE}.tar.xz"
        _run(work, "tar", "-xf", archive)
        os.unlink(archive)
        tree = f"{work}/{_SOURCE}"
        _make(tree, "tinyconfig")
        _run(tree, "scripts/kconfig/merge_config.sh", "-m", "-O", ".", ".config", _CONFIG)
        _make(tree, "olddefconfig")
        _check(f"{tree}/.config")
        print("building", flush=True)
        _make(tree, f"-j{os.cpu_count()}", "bzImage")
        with open(f"{tree}/include/config/kernel.release") as release:
            modules = f"{work}/out/modules/{release.read().strip()}"
        os.makedirs(f"{modules}/kernel")
        for name in ("modules.builtin", "modules.builtin.modinfo"):
            shutil.copy(f"{tree}/{name}", modules)
        shutil.copy(f"{tree}/.config", f"{work}/out/config")
        shutil.copy(f"{tree}/arch/x86/boot/bzImage", f"{work}/out")
        shutil.rmtree(final, ignore_errors=True)
        os.rename(f"{work}/out", final)


def _place() -> str:
    with open(_CONFIG, "rb") as file:
        return f"{CACHE}/lab-kernel/{hashlib.sha256(_SOURCE.encode() + file.read()).hexdigest()[:16]}"


def _check(path: str) -> None:
    """Everything that was asked for is there: kconfig drops in silence what something else is missing for."""
    with open(path) as file:
        there = set(file.read().splitlines())
    with open(_CONFIG) as file:
        dropped = [line for line in file.read().splitlines() if line.startswith("CONFIG_") and line not in there]
    if dropped:
        raise SystemExit(f"kconfig has dropped {', '.join(dropped)}")


def _make(tree: str, *words: str) -> None:
    _run(tree, "make", "-s", *words)


def _run(tree: str, *argv: str) -> None:
    subprocess.run(argv, cwd=tree, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def main() -> int:
    """Build it unless it is there."""
    began = time.monotonic()
    if find() is None:
        build()
    kernel = find()
    assert kernel is not None
    print(f'[image]\nkernel = "{kernel.image}"\nmodules = "{kernel.modules}"  # {time.monotonic() - began:.0f} s')
    return 0


if __name__ == "__main__":
    sys.exit(main())
