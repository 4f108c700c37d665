"""The cost of QEMU's jail at a start: the same start with and without a jail, alternately."""

from __future__ import annotations

import statistics

from bench.common import Measured, make_true, steps_of, timed, workbench
from tests.support.runtime import Runtime

ROUNDS = 15
_MADE, _STARTED = "QEMU: jail created", "QEMU: process started"


def measure() -> Measured:
    """The figure is the median time in ms to create and enter the jail, minus the time to start QEMU without one."""
    with (
        workbench('[vm]\nconfine = "required"\n') as (confined, directory),
        workbench('[vm]\nconfine = "off"\n') as (free, _),
    ):
        true, trace = make_true(directory), f"{directory}/trace.json"
        created, entered, started, whole, whole_free = [], [], [], [], []
        for number in range(ROUNDS + 1):
            whole.append(_run(confined, true, trace, number))
            steps = steps_of(trace)
            created.append(_length(steps[_MADE]))
            entered.append(_length(steps[_STARTED]))
            whole_free.append(_run(free, true, trace, number))
            started.append(_length(steps_of(trace)[_STARTED]))
        # The first start of each kind creates the template and the jail's files: leave it out.
        readings = {"made": created[1:], "entered": entered[1:], "started_without": started[1:]}
        readings |= {"whole_start": whole[1:], "whole_start_without": whole_free[1:]}
    figure = 1000 * (_median(created[1:]) + _median(entered[1:]) - _median(started[1:]))
    return Measured({"jail_ms": round(figure, 2)}, {"seconds": readings})


def _run(runtime: Runtime, bundle: str, trace: str, number: int) -> float:
    return timed(runtime.argv("run", "--bundle", bundle, "--timeline", trace, f"j{number}"))


def _length(step: tuple[float, float]) -> float:
    began, ended = step
    return ended - began


def _median(values: list[float]) -> float:
    return statistics.median(values)
