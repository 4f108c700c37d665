"""`hawse attach ID GROUP|ADDRESS...`: attach VFIO groups to a running container."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from hawse.commands.attach import attach
from hawse.json_text import Document
from hawse.notes import warning

if TYPE_CHECKING:
    from hawse.cli.settings import Settings

HELP = "attach VFIO groups to a running container, by the number of a group or the host's address of a function"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this verb."""
    parser.add_argument("-f", "--format", choices=("table", "json"), default="table")
    parser.add_argument("id", metavar="ID")
    parser.add_argument("target", nargs="+", metavar="GROUP|ADDRESS", help="such as 17 or 0000:3b:00.0")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Attach the groups and print the guest's addresses and nodes."""
    entries, warnings = attach(settings.store(args.id), args.target, settings.config)
    settings.log.tell(warning(text) for text in warnings)
    print(json.dumps(entries, indent=2) if args.format == "json" else "\n".join(map(_line, entries)))
    return 0


def _line(entry: Document) -> str:
    guest = entry["guest"]
    note = f" ({entry['note']})" if "note" in entry else ""
    nodes = " ".join(entry["nodes"])
    return f"{entry['device']}, group {entry['host']['group']}: in the guest {guest['address']}{note}, {nodes}"
