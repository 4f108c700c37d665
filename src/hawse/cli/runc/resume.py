"""`hawse resume ID`: continue a paused container."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from hawse.commands.client import call

if TYPE_CHECKING:
    from hawse.cli.settings import Settings

HELP = "continue the processes of a paused container"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this verb."""
    parser.add_argument("id", metavar="ID")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Continue the container through the monitor."""
    call(settings.store(args.id), "resume", {})
    return 0
