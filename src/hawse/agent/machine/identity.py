"""What makes a restored machine another one than its template: its random numbers, its clock, its names."""

from __future__ import annotations

import os
import time

from hawse.agent.system import syscalls, trace
from hawse.errors import VmError

_MIN_SEED, _MAX_SEED = 16, 512


def wake(*, seed: str, time_ns: int) -> dict[str, int]:
    """Take the host's randomness and time; draw a machine id. The answer has the guest's CLOCK_MONOTONIC.

    Each process's own generator is none of our business: nothing of a container runs in a template.
    """
    clock = time.monotonic_ns()
    entropy = read_seed(seed)
    with trace.span("random numbers reseeded"):
        syscalls.reseed(entropy)
    with trace.span("clock set and machine id drawn"):
        # Not by adjtime(2): a clone's clock may be days behind.
        time.clock_settime_ns(time.CLOCK_REALTIME, time_ns)
        with open("/etc/machine-id", "w") as file:  # machine-id(5): 32 lowercase digits
            file.write(os.urandom(16).hex() + "\n")
    return {"monotonic_ns": clock}


def read_seed(seed: str) -> bytes:
    """The bytes of a seed in hexadecimal. Raises :class:`VmError` for too few to be random or too many to be taken."""
    entropy = bytes.fromhex(seed)
    if not _MIN_SEED <= len(entropy) <= _MAX_SEED:
        raise VmError(f"a seed of {len(entropy)} bytes")
    return entropy
