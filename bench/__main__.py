"""`make bench`: figures as ratios of one run, each with what is to be reached beside it, and where the time goes.

``python -m bench [NAME...]`` runs all benchmarks, or some, by their names or those of their figures. Results:
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
#: What is to be reached, if anything, whether less is better, and which benchmark measures it.
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
    """Run, print, and keep the results."""
    words = [name for word in sys.argv[1:] for name in word.split(",")] or list(BENCHMARKS)
    unknown = [name for name in words if name not in BENCHMARKS and name not in GOALS]
    if unknown:
        print(f"no benchmark {unknown[0]}; there are: {' '.join([*BENCHMARKS, *GOALS])}", file=sys.stderr)
        return 1
    chosen = dict.fromkeys(GOALS[name][2] if name in GOALS else name for name in words)
    found: dict[str, Measured] = {}
    for name in chosen:
        print(f"== {name}", file=sys.stderr, flush=True)
        began = time.monotonic()
        found[name] = importlib.import_module(f"bench.{name}").measure()
        found[name].detail["took_s"] = round(time.monotonic() - began, 1)
        _keep(found)  # what was measured is not lost with what comes after
    print(_markdown(found))
    return 0


def _keep(found: dict[str, Measured]) -> None:
    figures = {name: value for one in found.values() for name, value in one.figures.items()}
    detail = {name: one.detail for name, one in found.items()}
    with open(f"{HERE}/results.json", "w") as file:
        json.dump({"figures": figures, "detail": detail}, file, indent=1)
        file.write("\n")
    with open(f"{HERE}/results.md", "w") as file:
        file.write(_markdown(found) + "\n")


def _markdown(found: dict[str, Measured]) -> str:
    lines = ["| figure | measured | to reach | |", "|---|---|---|---|"]
    for name, value in [item for one in found.values() for item in one.figures.items()]:
        goal, less, _ = GOALS[name]
        if goal is None:
            lines.append(f"| `{name}` | {value:g} | | |")
            continue
        reached = value <= goal if less else value >= goal
        verdict = "reached" if reached else f"missed by {abs(value / goal - 1):.0%}"
        lines.append(f"| `{name}` | {value:g} | {'≤' if less else '≥'} {goal:g} | {verdict} |")
    for name, one in found.items():
        seconds = one.detail.get("seconds")
        if seconds:
            lines += ["", f"{name}, medians in seconds:", "", "| what | s |", "|---|---|"]
            lines += [f"| {what} | {sorted(times)[len(times) // 2]:.3f} |" for what, times in seconds.items()]
        if one.notes:
            lines += ["", *one.notes]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
