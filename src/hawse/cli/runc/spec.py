"""`hawse spec`: write an example of config.json."""

from __future__ import annotations

import argparse
import json
import os
from typing import TYPE_CHECKING

from hawse.errors import HostError, UsageError
from hawse.oci.default_spec import example

if TYPE_CHECKING:
    from hawse.cli.settings import Settings

HELP = "write an example of config.json"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this verb."""
    parser.add_argument(
        "-b", "--bundle", metavar="DIR", default="", help="directory for the file (default: the current one)"
    )
    parser.add_argument("--rootless", action="store_true", help="refused: VMs with devices need root")


def run(args: argparse.Namespace, settings: Settings) -> int:  # noqa: ARG001  (every verb's signature)
    """Write the file, unless it exists."""
    if args.rootless:
        raise UsageError("spec --rootless: hawse runs as root", hint="leave --rootless out")
    path = os.path.join(args.bundle, "config.json")
    try:
        with open(path, "x") as file:
            json.dump(example(), file, indent="\t")
    except FileExistsError:
        raise UsageError(f"File {path} exists. Remove it first") from None
    except OSError as error:
        raise HostError(f"cannot write {path}: {error.strerror}") from None
    return 0
