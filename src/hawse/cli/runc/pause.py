"""`hawse pause ID`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from hawse.commands.client import call

if TYPE_CHECKING:
    from hawse.cli.settings import Settings

HELP = "stop every process of a container where it is"


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("id")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Ask the monitor."""
    call(settings.store(args.id), "pause", {})
    return 0
