"""`hawse kill ID [SIGNAL]`."""

from __future__ import annotations

import argparse
import signal
from typing import TYPE_CHECKING

from hawse.container.client import call
from hawse.errors import StateError, UsageError
from hawse.sandbox.state import STOPPED

if TYPE_CHECKING:
    from hawse.cli.settings import Settings

HELP = "send a signal to the first process of a container"


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("-a", "--all", action="store_true", help="to every process of the container")
    parser.add_argument("id")
    parser.add_argument("signal", nargs="?", default="SIGTERM", help="name or number (default SIGTERM)")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Ask the monitor."""
    number = parse_signal(args.signal)
    store = settings.store(args.id)
    if store.read()["status"] == STOPPED:
        if args.all:
            return 0  # engines send this after the end, to be sure; runc accepts it then
        raise StateError(f"container not running: {args.id}")
    call(store, "kill", {"signal": number, "all": args.all})
    return 0


def parse_signal(text: str) -> int:
    """The number of "9", "KILL", "SIGKILL" or "sigkill"; raises UsageError."""
    if text.isascii() and text.isdigit():
        if 1 <= int(text) <= signal.SIGRTMAX:
            return int(text)
    else:
        name = text.upper()
        name = name if name.startswith("SIG") else f"SIG{name}"
        if name in signal.Signals.__members__:
            return int(signal.Signals[name])
    raise UsageError(f"unknown signal {text!r}", hint="give a number or a name such as KILL")
