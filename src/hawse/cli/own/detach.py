"""`hawse detach ID GROUP|ADDRESS...`: detach VFIO groups from a running container."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from hawse.commands.attach import detach

if TYPE_CHECKING:
    from hawse.cli.settings import Settings

HELP = (
    "detach VFIO groups from a running container, by the number of a group or the host's address of a function. "
    "hawse restores the drivers that it has changed"
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this verb."""
    parser.add_argument("--force", action="store_true", help="kill the programs in the container that use the groups")
    parser.add_argument("id", metavar="ID")
    parser.add_argument("target", nargs="+", metavar="GROUP|ADDRESS", help="such as 17 or 0000:3b:00.0")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Detach the groups."""
    detach(settings.store(args.id), args.target, settings.config, force=args.force)
    return 0
