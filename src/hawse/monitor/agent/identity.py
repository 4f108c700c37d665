"""Making a machine one of its own: randomness and time from the host, before any process of a container runs.

Clones of one template would else draw the same random numbers and stand at the time of its saving. What the guest
makes of it is in :mod:`hawse.agent.machine.identity`.
"""

from __future__ import annotations

import os
import time

from hawse.errors import VmError
from hawse.monitor.agent.guest_link import GuestLink
from hawse.state.steps import GUEST, Steps

#: More than the guest kernel's random number generator keeps (ChaCha20's key of 32 bytes).
SEED_BYTES = 64


async def wake(link: GuestLink, steps: Steps, *, seconds: float) -> None:
    """Reseed the guest and set its clock; the difference between its clock and ours is noted for the timeline."""
    sent = time.monotonic()
    call = {"seed": os.urandom(SEED_BYTES).hex(), "time_ns": time.time_ns()}
    answer = await link.call("wake", call, seconds=seconds)
    received = time.monotonic()
    clock = answer.get("monotonic_ns") if isinstance(answer, dict) else None
    if type(clock) is not int or not 0 <= clock < 2**63:
        raise VmError("the guest reports no usable clock")
    # The guest read its clock somewhere between: the middle is wrong by half of the time that the call took at most.
    link.clock_offset = (sent + received) / 2 - clock / 1e9
    steps.add(GUEST, "woken", sent, received)
