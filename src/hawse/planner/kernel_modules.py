"""Kernel modules that the guest kernel may load. They are files of the image, shared with the first container."""

from __future__ import annotations

import os
from collections.abc import Sequence

from hawse.config import Config
from hawse.errors import ConfigError, ImageError
from hawse.oci.guest.share import Share
from hawse.vm.image import store

#: Its name below the first container's part of the share, which exists as long as the sandbox.
SHARE = "modules"


def find_image(config: Config) -> store.Image:
    """The configured guest image. Raises ImageError or HostError."""
    where = config.image
    return store.locate(cache=where.cache, kernel=where.kernel, modules=where.modules, extra=where.extra_modules)


def modules_share(kernel: str) -> Share:
    """The share with the modules of the image that has its kernel at this path."""
    source = os.path.join(os.path.dirname(kernel), store.MODULES)
    return Share(name=SHARE, source=source, is_dir=True, readonly=True)


def check_loaded(names: Sequence[str], directory: str) -> None:
    """Raise :class:`ConfigError` for names in ``vm.load_modules`` that are neither modules of the image nor built into
    its kernel, and :class:`ImageError` for a damaged image."""
    if not names:
        return
    known = set()
    try:
        for table in ("modules.dep", "modules.builtin"):
            with open(f"{directory}/{table}") as file:
                known |= {store.module_name(line.partition(":")[0].strip()) for line in file}
    except OSError as error:
        raise ImageError(
            f"the guest image is damaged: {error.filename}: {error.strerror}", hint="build it with `hawse image build`"
        ) from None
    missing = [name for name in names if store.module_name(name) not in known]
    if missing:
        raise ConfigError(
            f"vm.load_modules: {', '.join(missing)}: not among the modules of the guest image",
            hint="add it to image.extra_modules, then `hawse image build`",
        )
