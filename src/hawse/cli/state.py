"""`hawse state ID`: the OCI state as JSON."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from hawse.sandbox.state import public

if TYPE_CHECKING:
    from hawse.cli.settings import Settings

HELP = "print the state of a container"


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("id")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Print it, indented as runc's is: conmon's helpers look for the text of a line."""
    print(json.dumps(public(settings.store(args.id).read()), indent=2))
    return 0
