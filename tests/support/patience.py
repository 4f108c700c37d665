"""Time limits of tests, scaled by the speed of the machine.

A limit ends a test that hangs. It measures nothing, so it may be generous; but a limit that fits a fast machine fails
on a slow or busy one. Tests state how many seconds a thing may take on an idle machine with KVM, and
:func:`patience` returns the limit for this machine now.
"""

from __future__ import annotations

import functools
import inspect
import os
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
#: How much longer a guest takes with TCG than with KVM, as an upper limit and not as a measurement.
_EMULATED = 4.0
#: Seconds that the loop in `_slowness` takes on the machine that the limits are written for.
_REFERENCE = 0.012
#: The load above this number of runnable processes per CPU does not extend limits further.
_MOST_LOAD = 8.0


def patience(seconds: float) -> float:
    """Return the limit, in seconds, for an action that may take ``seconds`` on an idle machine with KVM."""
    return seconds * (1.0 if kvm_works() else _EMULATED) * _slowness() * _load()


def wait_until(
    condition: Callable[[], T], *, seconds: float = 30, what: str = "", seen: Callable[[], object] | None = None
) -> T:
    """Return the condition's first true value.

    ``seconds`` is passed to :func:`patience`. Raises AssertionError with ``what`` is awaited, or with the condition's
    source and last value, and with the result of ``seen``.
    """
    limit = patience(seconds)
    deadline = time.monotonic() + limit
    pause = 0.005
    began = time.monotonic()
    while not (value := condition()):
        now = time.monotonic()
        if now > deadline:
            more = f": {seen()}" if seen is not None else ""
            text = what or f"{_source(condition)}; last value: {value!r}"
            raise AssertionError(f"not within {limit:.0f} s: {text}{more}")
        # Conditions read /proc or start a command, which takes CPU time from the process that they wait for: use a
        # fifth of a CPU at most.
        time.sleep(max(pause, min(4 * (now - began), 0.5)))
        pause = min(pause * 1.5, 0.1)
        began = time.monotonic()
    return value


@functools.cache
def kvm_works() -> bool:
    """Whether guests run with KVM on this machine."""
    # Imported here: programs in the lab import this module, and each import takes long there.
    from hawse.config import Vm
    from hawse.errors import HawseError
    from hawse.vm.acceleration import choose
    from hawse.vm.image.store import locate
    from tests.support.caches import CACHE

    try:
        image = locate(cache=CACHE)
        acceleration = choose("auto", qemu=Vm().qemu, kernel=image.kernel, initrd=image.initrd, directory=CACHE)
    except HawseError:  # no guest image yet: only unit tests run then
        return False
    return acceleration.name == "kvm"


@functools.cache
def _slowness() -> float:
    """This CPU's time for a fixed loop, as a multiple of the reference, at least 1; the best of three tries."""
    return max(1.0, min(_loop() for _ in range(3)) / _REFERENCE)


def _loop() -> float:
    began = time.process_time()
    total = 0
    for number in range(200_000):
        total += number
    return time.process_time() - began


def _load() -> float:
    """Runnable processes per CPU in the last minute, at least 1."""
    return min(max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)), _MOST_LOAD)


def _source(condition: Callable[[], object]) -> str:
    try:
        return " ".join(inspect.getsource(condition).split())
    except (OSError, TypeError):
        return repr(condition)
