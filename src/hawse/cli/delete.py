"""`hawse delete [--force] ID`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from hawse.container.delete import delete

if TYPE_CHECKING:
    from hawse.cli.settings import Settings

HELP = "delete a container and all that it holds"


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("-f", "--force", action="store_true", help="also when it runs; no error when it is not there")
    parser.add_argument("id")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Delete it."""
    delete(settings.store(args.id), force=args.force)
    return 0
