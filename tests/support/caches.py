"""A cache of a test's own: the machine's images and answers, and templates of nobody else."""

from __future__ import annotations

import os
import shutil

from tests.support.bundles import CACHE


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
