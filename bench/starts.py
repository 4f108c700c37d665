"""Starts: cold and warm over the bare boot of the same VM, ten in parallel over one; compared with runc and crun."""

from __future__ import annotations

import subprocess
import time

from bench.common import (
    Measured,
    Seconds,
    bare_boot,
    first_line,
    make_opener,
    make_true,
    medians,
    others,
    ratio,
    steps_of,
    table,
    timed,
    workbench,
)
from tests.support.runtime import Runtime

ROUNDS = 7
_EDU = '[emulated]\n5 = ["edu"]\n'
_COLD = "[template]\nenabled = false\n"
_PARALLEL = 10


def measure() -> Measured:
    """Measure all kinds alternately in rounds, so that other load of the host affects each of them."""
    with workbench(_EDU) as (warm, directory), workbench(_COLD) as (cold, _):
        true, opens = make_true(directory), make_opener(directory, 5)
        assert cold("run", "--bundle", true, "warm-up").code == 0  # fills the page cache for all
        first_line(warm.argv("run", "--bundle", opens, "warm-up"))  # creates the template
        readings: dict[str, Seconds] = {
            "bare_boot": [],
            "cold_run_true": [],
            "warm_first_line": [],
            "warm_run_true": [],
        }
        compared = others(directory, true)
        running = [name for name, reason in compared.items() if not reason]
        readings |= {f"{name}_run_true": [] for name in running}
        cold_steps, warm_steps = [], []
        trace = f"{directory}/trace.json"
        for number in range(ROUNDS):
            readings["bare_boot"].append(bare_boot())
            readings["cold_run_true"].append(
                timed(cold.argv("run", "--bundle", true, "--timeline", trace, f"c{number}"))
            )
            cold_steps.append(steps_of(trace))
            readings["warm_first_line"].append(first_line(warm.argv("run", "--bundle", opens, f"w{number}")))
            timed(warm.argv("run", "--bundle", opens, "--timeline", trace, f"t{number}"))
            warm_steps.append(steps_of(trace))
            readings["warm_run_true"].append(timed(warm.argv("run", "--bundle", true, f"r{number}")))
            for name in running:
                root = ["--root", f"{directory}/{name}"]
                readings[f"{name}_run_true"].append(timed([name, *root, "run", "--bundle", true, f"o{number}"]))
        readings["one"] = [_at_once(warm, opens, 1) for _ in range(3)]
        readings["ten_at_once"] = [_at_once(warm, opens, _PARALLEL) for _ in range(3)]
    figures = {
        "cold_start_over_bare_boot": ratio(readings["cold_run_true"], readings["bare_boot"]),
        "warm_start_over_bare_boot": ratio(readings["warm_first_line"], readings["bare_boot"]),
        "parallel_10_over_1": ratio(readings["ten_at_once"], readings["one"]),
    }
    steps = {"cold": medians(cold_steps), "warm": medians(warm_steps)}
    notes = ["Cold start, no template:", "", *table(steps["cold"]), "", "Warm start, with an edu:", ""]
    notes += table(steps["warm"])
    return Measured(figures, {"seconds": readings, "steps_ms": steps, "compared": compared}, notes)


def _at_once(runtime: Runtime, bundle: str, count: int) -> float:
    """Seconds until the last of ``count`` parallel containers has opened its group."""
    began = time.monotonic()
    null = subprocess.DEVNULL
    running = [
        runtime.start("run", "--bundle", bundle, f"p{number}", stdin=null, stdout=subprocess.PIPE)
        for number in range(count)
    ]
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline()
    seconds = time.monotonic() - began
    for process in running:
        process.communicate()
        assert process.returncode == 0
    return seconds
