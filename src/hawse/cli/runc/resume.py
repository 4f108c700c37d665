"""`hawse resume ID`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from hawse.commands.client import call

if TYPE_CHECKING:
    from hawse.cli.settings import Settings

HELP = "let the processes of a paused container go on"


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("id")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Ask the monitor."""
    call(settings.store(args.id), "resume", {})
    return 0
