"""`hawse detach ID GROUP|ADDRESS...`: take VFIO groups from a container that runs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from hawse.commands.attach import detach

if TYPE_CHECKING:
    from hawse.cli.settings import Settings

HELP = "take VFIO groups from a running container; the host has them back"


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("--force", action="store_true", help="kill the programs in the container that use them")
    parser.add_argument("id")
    parser.add_argument("target", nargs="+", metavar="GROUP|ADDRESS")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Detach them."""
    detach(settings.store(args.id), args.target, settings.config, force=args.force)
    return 0
