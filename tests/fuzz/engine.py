"""A coverage-guided fuzzer: an input that reaches lines of hawse in a new order joins the corpus.

One case in :data:`_SAMPLE` is traced, since tracing takes ten times as long as parsing. Equal seeds make equal cases.
"""

from __future__ import annotations

import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from types import CodeType, FrameType
from typing import Any

import hawse
from tests.fuzz.mutations import Mutator
from tests.fuzz.target import Run, Target

_PACKAGE = os.path.dirname(os.path.abspath(hawse.__file__)) + os.sep
_SAMPLE = 32
_MOST_INPUTS = 2000
_MOST_FAILURES = 20
Edge = tuple[CodeType, int, int]
"""A line of a function, with the line of hawse that ran before it."""


class Coverage:
    """The edges that traced cases have reached."""

    def __init__(self) -> None:
        self.edges: set[Edge] = set()
        self._before = 0
        self._new = False

    def trace(self, run: Run, data: bytes) -> bool:
        """Run one case; whether it reached an edge that none before it has."""
        self._before, self._new = 0, False
        outer = sys.gettrace()
        sys.settrace(self._enter)
        try:
            run(data)
        finally:
            sys.settrace(outer)
        return self._new

    def _enter(self, frame: FrameType, _event: str, _arg: object) -> Callable[..., Any] | None:
        return self._line if frame.f_code.co_filename.startswith(_PACKAGE) else None

    def _line(self, frame: FrameType, _event: str, _arg: object) -> Callable[..., Any]:
        edge = frame.f_code, self._before, frame.f_lineno
        self._before = frame.f_lineno
        if edge not in self.edges:
            self.edges.add(edge)
            self._new = True
        return self._line


@dataclass
class Outcome:
    """The result of one target. ``failures``: by place in the code, an input that failed there and its traceback.

    ``inputs``: size of the corpus. ``grown``: growth of the process's peak memory, in KiB.
    """

    target: str
    cases: int = 0
    seconds: float = 0.0
    edges: int = 0
    inputs: int = 0
    grown: int = 0
    failures: dict[str, tuple[bytes, str]] = field(default_factory=dict)


def fuzz(target: Target, *, seed: int = 0, cases: int | None = None, seconds: float | None = None) -> Outcome:
    """Run that many cases, or for so long; the seeds of the target come first. With neither, the seeds only."""
    outcome, coverage, random = Outcome(target.name), Coverage(), Random(f"{target.name} {seed}")
    inputs = list(target.seeds)
    mutator = Mutator(target.form, random)
    most = sys.maxsize if seconds is not None else max(cases or 0, len(inputs))
    before, began = _memory(), time.monotonic()
    with target.start() as run:
        while outcome.cases < most and len(outcome.failures) < _MOST_FAILURES:
            first = outcome.cases < len(target.seeds)
            data = inputs[outcome.cases] if first else mutator.mutate(random.choice(inputs), random.choice(inputs))
            outcome.cases += 1
            try:
                if not first and outcome.cases % _SAMPLE:
                    run(data)
                elif coverage.trace(run, data) and not first:
                    _keep(inputs, data, len(target.seeds), random)
            except Exception as error:
                outcome.failures.setdefault(_place(error), (data, traceback.format_exc()))
            if seconds is not None and not outcome.cases % 100 and time.monotonic() - began > seconds:
                break
    outcome.seconds = time.monotonic() - began
    outcome.edges, outcome.inputs, outcome.grown = len(coverage.edges), len(inputs), _memory() - before
    return outcome


def _keep(inputs: list[bytes], data: bytes, seeds: int, random: Random) -> None:
    if len(inputs) < _MOST_INPUTS:
        inputs.append(data)
    else:
        inputs[random.randrange(seeds, len(inputs))] = data


def _place(error: BaseException) -> str:
    """Where it was raised: one input for each place is enough."""
    frames = traceback.extract_tb(error.__traceback__)
    last = next((frame for frame in reversed(frames) if frame.filename.startswith(_PACKAGE)), frames[-1])
    return f"{type(error).__name__} at {last.filename}:{last.lineno}, {frames[-1].filename}:{frames[-1].lineno}"


def _memory() -> int:
    """The most memory that this process has had, in KiB (getrusage(2), ru_maxrss)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
