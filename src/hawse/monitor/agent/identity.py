"""Give a VM its own identity: a random seed and the time from the host, before any process of a container runs.

Otherwise clones of one template would generate the same random numbers, and their clocks would show the time at which
the template was saved. The guest's part is in :mod:`hawse.agent.machine.identity`.
"""

from __future__ import annotations

import os
import time

from hawse.monitor.agent.calls import Wake
from hawse.monitor.agent.guest_link import GuestLink
from hawse.state.steps import GUEST, Steps

#: More than the state of the guest kernel's random number generator (ChaCha20's key of 32 bytes).
SEED_BYTES = 64


async def wake(link: GuestLink, steps: Steps, *, seconds: float) -> None:
    """Reseed the guest and set its clock. Stores the offset of its monotonic clock from the host's for the timeline."""
    sent = time.monotonic()
    call = Wake(seed=os.urandom(SEED_BYTES).hex(), time_ns=time.time_ns())
    answer = await link.call(call, seconds=seconds)
    received = time.monotonic()
    # The guest read its clock between these two times: the middle is wrong by half of the call's duration at most.
    link.clock_offset = (sent + received) / 2 - answer.monotonic_ns / 1e9
    steps.add(GUEST, "woken", sent, received)
