"""Making a machine one of its own: randomness and time from the host, before any process of a container runs.

Clones of one template would else draw the same random numbers and stand at the time of its saving. What the guest
makes of it is in :mod:`hawse.agent.machine.identity`.
"""

from __future__ import annotations

import os
import time

from hawse.monitor.agent.calls import Wake
from hawse.monitor.agent.guest_link import GuestLink
from hawse.state.steps import GUEST, Steps

#: More than the guest kernel's random number generator keeps (ChaCha20's key of 32 bytes).
SEED_BYTES = 64


async def wake(link: GuestLink, steps: Steps, *, seconds: float) -> None:
    """Reseed the guest and set its clock; the difference between its clock and ours is noted for the timeline."""
    sent = time.monotonic()
    call = Wake(seed=os.urandom(SEED_BYTES).hex(), time_ns=time.time_ns())
    answer = await link.call(call, seconds=seconds)
    received = time.monotonic()
    # The guest read its clock somewhere between: the middle is wrong by half of the time that the call took at most.
    link.clock_offset = (sent + received) / 2 - answer.monotonic_ns / 1e9
    steps.add(GUEST, "woken", sent, received)
