"""Record when the steps of a sandbox began and ended, in ``steps.json`` in its directory, in seconds of
CLOCK_MONOTONIC.

All processes of the host share this clock, so the steps of the command and of the monitor are in one list. The times of
the guest's steps are converted to it. The steps of one lane follow or contain each other; different lanes may overlap.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

TYPE_CHECKING = False  # hot verbs do not import typing: it costs milliseconds
if TYPE_CHECKING:
    from typing import Protocol

    class GuestStep(Protocol):
        """A step of the guest, in nanoseconds of its CLOCK_MONOTONIC."""

        @property
        def name(self) -> str: ...
        @property
        def began_ns(self) -> int: ...
        @property
        def ended_ns(self) -> int: ...


COMMAND, MONITOR, QEMU, SHARE, MEMORY, DEVICES, NETWORK, GUEST = (
    "command line", "monitor", "QEMU", "share", "memory", "devices", "network", "guest"
)  # fmt: skip

_MOST_OF_GUEST = 256

Step = tuple[str, str, float, float]
"""Lane, name, begin, end."""


class Steps:
    """Collects steps, and writes them to a file when :meth:`save` is called."""

    def __init__(self, path: str, before: list[Step]) -> None:
        self._path = path
        self.done = list(before)

    @contextmanager
    def span(self, lane: str, name: str) -> Iterator[None]:
        """Record the block as a step, whether it succeeds or fails."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.add(lane, name, began, time.monotonic())

    def add(self, lane: str, name: str, began: float, ended: float) -> None:
        """Record a step."""
        self.done.append((lane, name, began, ended))

    def add_guest(self, steps: Sequence[GuestStep], *, offset: float) -> None:
        """Record the guest's steps, each on its own lane. ``offset`` in seconds converts times to this clock."""
        for step in steps[:_MOST_OF_GUEST]:
            name = "".join(c for c in step.name[:80] if c.isprintable())
            began, ended = (time_ns / 1e9 + offset for time_ns in (step.began_ns, step.ended_ns))
            self.add(f"in the guest: {name}", name, began, max(began, ended))

    def save(self) -> None:
        """Write the file. Errors such as a full disk are ignored, since the file is only for diagnosis."""
        try:
            with open(self._path, "w") as file:
                json.dump(self.done, file)
        except OSError:
            return


def process_start() -> float:
    """The start of this process in seconds since boot, precise to a clock tick (proc(5), stat field 22)."""
    with open("/proc/self/stat", "rb") as file:
        ticks = int(file.read().rpartition(b")")[2].split()[19])
    return ticks / os.sysconf("SC_CLK_TCK")
