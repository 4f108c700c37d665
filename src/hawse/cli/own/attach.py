"""`hawse attach ID GROUP|ADDRESS...`: VFIO groups for a container that runs."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from hawse.commands.attach import attach

if TYPE_CHECKING:
    from hawse.cli.settings import Settings

HELP = "give a running container VFIO groups, by their numbers or by addresses of their functions"


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("-f", "--format", choices=("table", "json"), default="table")
    parser.add_argument("id")
    parser.add_argument("target", nargs="+", metavar="GROUP|ADDRESS")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Attach them and print where they are in the guest."""
    entries, warnings = attach(settings.store(args.id), args.target, settings.config)
    settings.log.tell(("warning", text) for text in warnings)
    print(json.dumps(entries, indent=2) if args.format == "json" else "\n".join(map(_line, entries)))
    return 0


def _line(entry: dict[str, Any]) -> str:
    guest = entry["guest"]
    note = f" ({entry['note']})" if "note" in entry else ""
    nodes = " ".join(entry["nodes"])
    return f"{entry['device']}, group {entry['host']['group']}: in the guest {guest['address']}{note}, {nodes}"
