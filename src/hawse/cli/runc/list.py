"""`hawse list`: list the containers of a state directory."""

from __future__ import annotations

import argparse
import json
import os
from typing import TYPE_CHECKING

from hawse.errors import HawseError, HostError
from hawse.state.store import public

if TYPE_CHECKING:
    from hawse.cli.settings import Settings
    from hawse.state.store import State

HELP = "list the containers"
_COLUMNS = (
    ("ID", "id"),
    ("PID", "pid"),
    ("STATUS", "status"),
    ("BUNDLE", "bundle"),
    ("CREATED", "created"),
    ("OWNER", "owner"),
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this verb."""
    parser.add_argument("-f", "--format", choices=("table", "json"), default="table")
    parser.add_argument("-q", "--quiet", action="store_true", help="only the IDs")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Print the containers in runc's columns."""
    states = _states(settings)
    if args.quiet:
        for state in states:
            print(state["id"])
    elif args.format == "json":
        print(json.dumps([public(state) for state in states] or None))
    else:
        rows = [[title for title, _ in _COLUMNS], *([str(state[key]) for _, key in _COLUMNS] for state in states)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
        for row in rows:
            print("   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _states(settings: Settings) -> list[State]:
    try:
        names = sorted(os.listdir(settings.root)) if os.path.isdir(settings.root) else []
    except OSError as error:
        raise HostError(f"{settings.root} cannot be read: {error.strerror}", hint="run as root") from None
    states = []
    for name in names:
        try:
            states.append(settings.store(name).read())
        except PermissionError as error:
            settings.log.warning(f"{name} is not listed: {error.filename} cannot be read [run as root]")
        except HawseError as error:  # just deleted, or a directory of another runtime
            settings.log.debug(f"{name} is skipped: {error.message}")
    return states
