"""When each step of a sandbox's life began and ended: ``steps.json`` in its directory, seconds of CLOCK_MONOTONIC.

The clock is one for all processes of the host, so the command line's and the monitor's entries stand in one list; the
guest's are moved onto it. A lane holds steps that follow each other or contain each other; other lanes overlap it.
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
    """Collects steps, and writes them at the moments that matter."""

    def __init__(self, path: str, before: list[Step]) -> None:
        self._path = path
        self.done = list(before)

    @contextmanager
    def span(self, lane: str, name: str) -> Iterator[None]:
        """The block is a step, whether it succeeds or fails."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.add(lane, name, began, time.monotonic())

    def add(self, lane: str, name: str, began: float, ended: float) -> None:
        """Note a step."""
        self.done.append((lane, name, began, ended))

    def add_guest(self, steps: Sequence[GuestStep], *, offset: float) -> None:
        """Note the guest's steps, each on a lane of its own; ``offset`` in seconds moves them onto this clock."""
        for step in steps[:_MOST_OF_GUEST]:
            name = "".join(c for c in step.name[:80] if c.isprintable())
            began, ended = (time_ns / 1e9 + offset for time_ns in (step.began_ns, step.ended_ns))
            self.add(f"in the guest: {name}", name, began, max(began, ended))

    def save(self) -> None:
        """Write the file; it is evidence only, so a full disk stops nothing."""
        try:
            with open(self._path, "w") as file:
                json.dump(self.done, file)
        except OSError:
            return


def process_start() -> float:
    """When this process was started, to a clock tick (proc(5), stat field 22, since boot as CLOCK_MONOTONIC is)."""
    with open("/proc/self/stat", "rb") as file:
        ticks = int(file.read().rpartition(b")")[2].split()[19])
    return ticks / os.sysconf("SC_CLK_TCK")
