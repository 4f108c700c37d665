"""`hawse timeline FILE`: draw the trace of a sandbox's start."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from hawse.state.timeline import read

if TYPE_CHECKING:
    from hawse.cli.settings import Settings
    from hawse.state.steps import Step

HELP = "draw the trace that `hawse run --timeline` has written"
_LEAST_WIDTH = 20
_NUMBERS = 22


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this verb."""
    parser.add_argument("file")


def run(args: argparse.Namespace, _settings: Settings) -> int:
    """Draw one line for each step, in the order in which the steps begin."""
    from rich.console import Console
    from rich.table import Table

    steps = sorted(read(args.file), key=lambda step: (step[2], -step[3]))
    names = max(len(title(step)) for step in steps)
    width = max(_LEAST_WIDTH, Console().width - names - _NUMBERS)
    console = Console(highlight=False, width=names + _NUMBERS + width)  # a pipe has 80 columns, which may be too few
    end = max(step[3] for step in steps)
    table = Table(box=None, pad_edge=False)
    table.add_column("step", no_wrap=True)
    table.add_column("from ms", justify="right")
    table.add_column("takes", justify="right")
    table.add_column("", no_wrap=True)
    for step in steps:
        _, _, began, ended = step
        table.add_row(
            title(step), f"{began * 1000:.0f}", f"{(ended - began) * 1000:.0f}", bar(began, ended, end, width)
        )
    console.print(table, markup=False)
    return 0


def bar(began: float, ended: float, end: float, width: int) -> str:
    """A step as a bar of at least one character, in a line of ``width`` characters that represents ``end`` seconds."""
    scale = width / end if end > 0 else 0
    start = min(int(began * scale), width - 1)
    return " " * start + "█" * max(1, min(round((ended - began) * scale), width - start))


def title(step: Step) -> str:
    """Lane and name of a step, or the lane only if it ends with the name."""
    lane, name, _, _ = step
    return lane if lane.endswith(name) else f"{lane}: {name}"
