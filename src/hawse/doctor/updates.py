"""Check whether the guest image contains the security updates of its packages. Nothing is downloaded for this."""

from __future__ import annotations

import os
import re
import subprocess
import time
import tomllib

from hawse.config import ImageFiles
from hawse.vm.image import store

#: The age in days at which an image is outdated: Debian publishes kernel updates about once a month.
DAYS = 30
REMEDY = "`apt-get update`, then `hawse image build`; running containers keep the old image"
_DAY = 24 * 3600.0
_SECONDS = 20


def outdated(files: ImageFiles, image: store.Image, *, now: float | None = None) -> str:
    """The reason why the image should be built again, as a sentence; "" for none."""
    seconds = (time.time() if now is None else now) - store.confirmed(
        files.cache, files.kernel, files.modules, files.extra_modules
    )
    if seconds > DAYS * _DAY:
        return f"it lacks the updates of the last {int(seconds / _DAY)} days"
    newer = "" if files.kernel else _newer_kernel(store.packages(image))
    return f"it lacks the kernel {newer} in apt's package lists" if newer else ""


def _newer_kernel(packages: dict[str, str]) -> str:
    """The version of the kernel package in this host's apt lists, "" if it is not newer than the image's."""
    ours = next((version for name, version in packages.items() if name.startswith("linux-image-")), "")
    with open(os.path.join(store.recipe_directory(), "recipe.toml"), "rb") as file:
        name = tomllib.load(file)["kernel_package"]
    shown = _run("apt-cache", "show", "--no-all-versions", name)
    match = re.search(r"^Depends:.*\blinux-image-\S+ \(= ([^)]+)\)", shown or "", re.MULTILINE)
    if not ours or match is None:
        return ""
    return match[1] if _run("dpkg", "--compare-versions", match[1], "gt", ours) is not None else ""


def _run(*argv: str) -> str | None:
    """The output of a program; None if it fails or is missing, as on systems other than Debian."""
    try:
        answer = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout if answer.returncode == 0 else None
