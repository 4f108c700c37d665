"""`hawse pause ID`: freeze a container."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from hawse.commands.client import call

if TYPE_CHECKING:
    from hawse.cli.settings import Settings

HELP = "freeze all processes of a container, until `hawse resume`"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this verb."""
    parser.add_argument("id", metavar="ID")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Freeze the container through the monitor."""
    call(settings.store(args.id), "pause", {})
    return 0
