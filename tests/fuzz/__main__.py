"""``python -m tests.fuzz [TARGET...]`` is `make fuzz`: each parser of bytes that a guest controls, with hostile inputs.

A line for each target: cases, cases a second, edges of hawse's code that were reached, inputs that are mutated further,
and by how much the memory of the process grew. A failing input is printed in hex and saved in evidence/fuzz; the exit
code is 1 then. `--input FILE` runs one saved input again.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence

from tests.fuzz.engine import Outcome, fuzz
from tests.fuzz.targets import TARGETS
from tests.support.evidence import EVIDENCE

#: A process that parses 10^6 inputs may not grow by more, in KiB.
_MOST_GROWN = 256 * 1024


def main(arguments: Sequence[str]) -> int:
    """Fuzz the targets one after the other; the exit code is 1 where one fails."""
    options = _options(arguments)
    if options.input is not None:
        [name] = options.targets or [""]
        with open(options.input, "rb") as file, TARGETS[name].start() as run:
            run(file.read())
        return 0
    failed = False
    for name in options.targets or TARGETS:
        outcome = fuzz(TARGETS[name], seed=options.seed, cases=options.cases, seconds=options.seconds)
        print(_line(outcome), flush=True)
        for place, (data, text) in outcome.failures.items():
            print(f"\n{name}: {place}\n{_save(name, place, data)}\n{data.hex()}\n{text}", flush=True)
        if outcome.grown > _MOST_GROWN:
            print(f"{name}: the process grew by more than {_MOST_GROWN} KiB", flush=True)
        failed |= bool(outcome.failures) or outcome.grown > _MOST_GROWN
    return int(failed)


def _line(outcome: Outcome) -> str:
    speed = outcome.cases / max(outcome.seconds, 1e-6)
    return (
        f"{outcome.target:12} {outcome.cases:9} cases {speed:8.0f}/s {outcome.edges:6} edges {outcome.inputs:5} inputs "
        f"{outcome.grown:7} KiB more {len(outcome.failures):3} failures"
    )


def _save(name: str, place: str, data: bytes) -> str:
    directory = os.path.join(EVIDENCE, "fuzz")
    os.makedirs(directory, exist_ok=True)
    path = os.path.join(directory, f"{name}-{re.sub(r'[^A-Za-z0-9]+', '-', place)[-80:].strip('-')}")
    with open(path, "wb") as file:
        file.write(data)
    return path


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; else all of them")
    parser.add_argument("--cases", type=int, metavar="N", help="cases of each target")
    parser.add_argument("--seconds", type=float, metavar="N", help="seconds for each target, 60 without --cases")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="repeats a run; another gives other cases")
    parser.add_argument("--input", metavar="FILE", help="run this input of the one target instead")
    options = parser.parse_args(arguments)
    if unknown := set(options.targets) - set(TARGETS):
        parser.error(f"unknown target {', '.join(sorted(unknown))}")
    if options.cases is None and options.seconds is None:
        options.seconds = 60.0
    return options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
