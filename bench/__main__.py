"""`make bench`: figures, mostly ratios within one run, each with its goal, and a breakdown of the time.

``python -m bench [NAME...]`` runs all benchmarks, or those with the given names or figures. Results:
bench/results.json and bench/results.md.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time

from bench.common import Measured

HERE = os.path.dirname(os.path.abspath(__file__))
BENCHMARKS = ("starts", "jail", "verbs", "attach", "footprint", "busy", "packets", "network", "lab")
#: For each figure: its goal or None, whether less is better, and the benchmark that measures it.
GOALS: dict[str, tuple[float | None, bool, str]] = {
    "cold_start_over_bare_boot": (1.3, True, "starts"),
    "warm_start_over_bare_boot": (0.25, True, "starts"),
    "warm_start_nested_over_bare_boot_nested": (0.25, True, "lab"),
    "state_over_python": (3.0, True, "verbs"),
    "attach_8_over_attach_1": (2.5, True, "attach"),
    "attach_4gib_over_1gib": (1.1, True, "lab"),
    "locked_kib_by_attach": (1024.0, True, "lab"),
    "pss_mib_host_side": (40.0, True, "footprint"),
    "agent_rss_mib": (16.0, True, "footprint"),
    "parallel_10_over_1": (8.0, True, "starts"),
    "testpmd_container_over_guest": (0.97, False, "packets"),
    "jail_ms": (3.0, True, "jail"),
    "pod_overhead_mib": (None, True, "footprint"),
    "pod_overhead_cold_mib": (None, True, "footprint"),
    "pod_overhead_busy_mib": (None, True, "busy"),
    "network_throughput_over_runc": (None, False, "network"),
    "network_round_trip_over_runc": (None, True, "network"),
}


def main() -> int:
    """Run the benchmarks, print and save the results."""
    words = [name for word in sys.argv[1:] for name in word.split(",")] or list(BENCHMARKS)
    unknown = [name for name in words if name not in BENCHMARKS and name not in GOALS]
    if unknown:
        print(f"unknown benchmark {unknown[0]}; choose from: {' '.join([*BENCHMARKS, *GOALS])}", file=sys.stderr)
        return 1
    chosen = dict.fromkeys(GOALS[name][2] if name in GOALS else name for name in words)
    results: dict[str, Measured] = {}
    for name in chosen:
        print(f"== {name}", file=sys.stderr, flush=True)
        began = time.monotonic()
        results[name] = importlib.import_module(f"bench.{name}").measure()
        results[name].detail["took_s"] = round(time.monotonic() - began, 1)
        _save(results)  # after each benchmark, so that a later failure does not lose the results
    print(_markdown(results))
    return 0


def _save(results: dict[str, Measured]) -> None:
    figures = {name: value for one in results.values() for name, value in one.figures.items()}
    detail = {name: one.detail for name, one in results.items()}
    with open(f"{HERE}/results.json", "w") as file:
        json.dump({"figures": figures, "detail": detail}, file, indent=1)
        file.write("\n")
    with open(f"{HERE}/results.md", "w") as file:
        file.write(_markdown(results) + "\n")


def _markdown(results: dict[str, Measured]) -> str:
    lines = ["| figure | measured | goal | |", "|---|---|---|---|"]
    for name, value in [item for one in results.values() for item in one.figures.items()]:
        goal, less, _ = GOALS[name]
        if goal is None:
            lines.append(f"| `{name}` | {value:g} | | |")
            continue
        reached = value <= goal if less else value >= goal
        verdict = "reached" if reached else f"missed by {abs(value / goal - 1):.0%}"
        lines.append(f"| `{name}` | {value:g} | {'≤' if less else '≥'} {goal:g} | {verdict} |")
    for name, one in results.items():
        seconds = one.detail.get("seconds")
        if seconds:
            lines += ["", f"{name}, medians in seconds:", "", "| reading | s |", "|---|---|"]
            lines += [f"| {reading} | {sorted(times)[len(times) // 2]:.3f} |" for reading, times in seconds.items()]
        if one.notes:
            lines += ["", *one.notes]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
