"""A fake guest kernel for tests of the agent: a private sysfs, driver probes, and events in a fixed order."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from hawse.agent.system.uevents import Uevents
from tests.support.sysfs import FakeSysfs

_ADDRESS = len("0000:00:00.0")


class FakeUevents(Uevents):
    """Each wait for an event executes the next step. Without further steps, the wait ends as at its deadline."""

    def __init__(self, *steps: Callable[[], None]) -> None:
        self.steps = list(steps)

    def wait_until(self, look: Callable[[], bool], *, deadline: float) -> bool:
        """Like the real method, without waiting."""
        while not look():
            if not self.steps or time.monotonic() >= deadline:
                return False
            self.steps.pop(0)()
        return True


class FakeKernel(FakeSysfs):
    """A sysfs that records which functions the drivers probe."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        bus = f"{root}/sys/bus/pci"
        os.makedirs(f"{bus}/devices")
        os.mkfifo(f"{bus}/drivers_probe")
        self._probes = os.open(f"{bus}/drivers_probe", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def close(self) -> None:
        """Stop recording."""
        os.close(self._probes)

    def probed(self) -> list[str]:
        """The addresses of the functions that were probed since the last call."""
        try:
            text = os.read(self._probes, 65536).decode()
        except BlockingIOError:
            return []
        return [text[at : at + _ADDRESS] for at in range(0, len(text), _ADDRESS)]

    def attribute(self, address: str, name: str, text: str) -> None:
        """A file of a function."""
        self.write(f"sys/bus/pci/devices/{address}/{name}", text)
