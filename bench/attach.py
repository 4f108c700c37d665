"""Attaching eight groups over attaching one: from the first plugged device until the container with all is created."""

from __future__ import annotations

from bench.common import Measured, Seconds, make_opener, ratio, steps_of, timed, workbench

ROUNDS = 5
_CONFIG = "[emulated]\n" + "".join(f'{number} = ["edu"]\n' for number in range(1, 9))


def measure() -> Measured:
    """Each case uses a separate VM configuration, and therefore a separate template."""
    with workbench(_CONFIG) as (runtime, directory):
        bundles = {1: make_opener(directory, 1), 8: make_opener(directory, *range(1, 9))}
        trace = f"{directory}/trace.json"
        readings: dict[int, Seconds] = {1: [], 8: []}
        bound: dict[int, Seconds] = {1: [], 8: []}
        for count, bundle in bundles.items():
            timed(runtime.argv("run", "--bundle", bundle, f"warm-up-{count}"))
        for number in range(ROUNDS):
            for count, bundle in bundles.items():
                timed(runtime.argv("run", "--bundle", bundle, "--timeline", trace, f"c{number}-{count}"))
                steps = steps_of(trace)
                began, ended = steps["devices: attached"]
                bound[count].append(ended - began)
                readings[count].append(steps["guest: container created"][1] - began)
    detail = {"until_in_container_s": readings, "until_bound_s": bound, "bound_8_over_1": ratio(bound[8], bound[1])}
    return Measured({"attach_8_over_attach_1": ratio(readings[8], readings[1])}, detail)
