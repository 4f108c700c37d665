"""`hawse start ID`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from hawse.container.client import call
from hawse.errors import StateError
from hawse.sandbox.state import STOPPED

if TYPE_CHECKING:
    from hawse.cli.settings import Settings

HELP = "start the program of a created container"


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("id")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Ask the monitor."""
    store = settings.store(args.id)
    if store.read()["status"] == STOPPED:
        raise StateError(f"cannot start a container that has stopped: {args.id}", hint="delete it and create it anew")
    call(store, "start", {})
    return 0
