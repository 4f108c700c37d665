"""`hawse ps ID`: list the processes of a container, with the pids of the guest or of the host."""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from typing import TYPE_CHECKING

from hawse.commands.client import call
from hawse.errors import HostError
from hawse.oci.process.table import Row, table

if TYPE_CHECKING:
    from hawse.cli.settings import Settings

HELP = (
    "list the processes of a container, with the pids that they have in it. --format json and options for the host's "
    "ps show pids of the host instead: one for the container's first process and one for each exec"
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this verb."""
    parser.add_argument("-f", "--format", choices=("table", "json"), default="table")
    parser.add_argument("id", metavar="ID")
    parser.add_argument(
        "options", nargs=argparse.REMAINDER, metavar="PS-OPTION", help="options for the host's ps, such as -ef"
    )


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Print the processes."""
    store = settings.store(args.id)
    if args.format == "json" or args.options:
        pids = call(store, "pids", {})
        assert isinstance(pids, list)
        print(json.dumps(pids) if args.format == "json" else "\n".join(chosen(_host_ps(args.options), pids)))
    else:
        rows = call(store, "listing", {})
        assert isinstance(rows, list)
        print("\n".join(table([Row(*row) for row in rows], now=time.time())))
    return 0


def chosen(lines: list[str], pids: list[int]) -> list[str]:
    """The title and the lines of these processes in the output of `ps`, as runc filters it (ps.go)."""
    titles = lines[0].split() if lines else []
    if "PID" not in titles:
        raise HostError("ps: the options leave the column PID out", hint="use options such as -ef or aux")
    column = titles.index("PID")
    numbers = {str(pid) for pid in pids}
    return [lines[0], *(line for line in lines[1:] if numbers & set(line.split()[column : column + 1]))]


def _host_ps(options: list[str]) -> list[str]:
    try:
        done = subprocess.run(["ps", *options], capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise HostError(f"cannot run ps: {error.strerror}", hint="install procps") from None
    if done.returncode:
        raise HostError(f"ps {' '.join(options)[:200]}: exit code {done.returncode}", evidence=done.stderr[:4096])
    return done.stdout.splitlines()
