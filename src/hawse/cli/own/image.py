"""`hawse image build|verify`: build or verify the guest image."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

from hawse.vm.image.store import Image, locate

if TYPE_CHECKING:
    from hawse.cli.settings import Settings

HELP = "build the guest image, or verify it: read all of its files and compare them with the recorded digests"

_UP_TO_DATE = "up to date: the packages in apt's lists, the recipe and hawse's sources are those that it was built from"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this verb."""
    parser.add_argument("action", choices=("build", "verify"))


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Build or verify the image and describe it."""
    where = settings.config.image
    if args.action == "verify":
        image = locate(
            cache=where.cache, kernel=where.kernel, modules=where.modules, extra=where.extra_modules, hash_files=True
        )
        _describe(image, "verified")
        return 0
    from rich.console import Console

    from hawse.vm.image.build import build

    began = time.monotonic()
    console = Console(stderr=True)
    with console.status("building the guest image") as status:

        def progress(step: str) -> None:
            status.update(step)
            if not console.is_terminal:
                print(f"{time.monotonic() - began:6.1f} s  {step}", file=sys.stderr, flush=True)

        image = build(
            cache=where.cache, progress=progress, kernel=where.kernel, modules=where.modules, extra=where.extra_modules
        )
    _describe(image, f"built in {image.build_seconds:.1f} s" if image.fresh else _UP_TO_DATE)
    return 0


def _describe(image: Image, result: str) -> None:
    size, beside = (f"{count / 1024 / 1024:.1f} MiB" for count in (image.size, image.beside))
    print(f"guest image {image.digest[:12]}: kernel {image.release}, {size}, modules beside it {beside}, {result}")
