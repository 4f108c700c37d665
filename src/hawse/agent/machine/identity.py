"""The identity of a VM that is restored from a template: new random numbers, clock and machine id."""

from __future__ import annotations

import os
import time

from hawse.agent.system import syscalls, trace
from hawse.errors import VmError

_MIN_SEED, _MAX_SEED = 16, 512


def wake(*, seed: str, time_ns: int) -> dict[str, int]:
    """Apply the host's random seed and time, and generate a machine id. Returns the guest's CLOCK_MONOTONIC.

    Random number generators of processes need no new seed: a template contains no process of a container.
    """
    clock = time.monotonic_ns()
    entropy = read_seed(seed)
    with trace.span("random numbers reseeded"):
        syscalls.reseed(entropy)
    with trace.span("clock set and machine id drawn"):
        # Set the clock, do not slew it with adjtime(3): the clock of a clone may be days behind.
        time.clock_settime_ns(time.CLOCK_REALTIME, time_ns)
        with open("/etc/machine-id", "w") as file:  # machine-id(5): 32 lowercase digits
            file.write(os.urandom(16).hex() + "\n")
    return {"monotonic_ns": clock}


def read_seed(seed: str) -> bytes:
    """The bytes of a hexadecimal seed. Raises :class:`VmError` if it has fewer than 16 or more than 512 bytes."""
    entropy = bytes.fromhex(seed)
    if not _MIN_SEED <= len(entropy) <= _MAX_SEED:
        raise VmError(f"a seed of {len(entropy)} bytes; {_MIN_SEED} to {_MAX_SEED} are allowed")
    return entropy
