"""When each step of a sandbox's start was done: ``steps.json`` in its directory, seconds of CLOCK_MONOTONIC.

The clock is one for all processes of the host, so the command line's and the monitor's entries stand in one list.
"""

from __future__ import annotations

import json
import os
import time


class Steps:
    """Collects (name, time) and keeps the file up to date at the marks that matter."""

    def __init__(self, path: str, before: list[tuple[str, float]]) -> None:
        self._path = path
        self._steps = list(before)

    def mark(self, name: str) -> None:
        """A step is done now."""
        self._steps.append((name, time.monotonic()))

    def save(self) -> None:
        """Write the file; it is evidence only, so a full disk stops nothing."""
        try:
            with open(self._path, "w") as file:
                json.dump(self._steps, file)
        except OSError:
            return


def process_start() -> float:
    """When this process was started, to a clock tick (proc(5), stat field 22, since boot as CLOCK_MONOTONIC is)."""
    with open("/proc/self/stat", "rb") as file:
        ticks = int(file.read().rpartition(b")")[2].split()[19])
    return ticks / os.sysconf("SC_CLK_TCK")
