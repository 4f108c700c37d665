"""Credit: how much of a stream may be on its way. Both ends of the link count with these two classes.

Each direction of a stream starts with :data:`WINDOW` bytes. The sender spends them, the receiver gives them back once
it has passed the bytes on. So a reader that stops, stops its own stream alone, and the window bounds what is stored.
"""

from __future__ import annotations

import struct

from hawse.errors import LinkError

WINDOW = 256 * 1024

_CREDIT = struct.Struct(">I")


def encode_credit(count: int) -> bytes:
    """Payload of a CREDIT frame."""
    return _CREDIT.pack(count)


def decode_credit(payload: bytes) -> int:
    """Bytes granted by a CREDIT frame."""
    count: int = _CREDIT.unpack(payload)[0]
    return count


class SendWindow:
    """The sender's side: what it may still send."""

    def __init__(self) -> None:
        self.available = WINDOW

    def spend(self, count: int) -> None:
        """Account for ``count`` sent bytes; the caller has checked ``available``."""
        if count > self.available:
            raise LinkError(f"link: {count} bytes sent with a credit of {self.available}")
        self.available -= count

    def grant(self, count: int) -> None:
        """Account for a CREDIT frame. A peer that gives back more than it received is broken."""
        if not 0 < count <= WINDOW - self.available:
            raise LinkError(f"link: credit of {count} bytes for a window of {WINDOW} with {self.available} unspent")
        self.available += count


class ReceiveWindow:
    """The receiver's side: what may still arrive, and what has been passed on but not given back yet."""

    def __init__(self) -> None:
        self._allowed = WINDOW
        self._owed = 0

    def receive(self, count: int) -> None:
        """Account for arrived bytes; raises :class:`LinkError` when the peer ignored its credit."""
        if count > self._allowed:
            raise LinkError(f"link: {count} bytes received with a credit of {self._allowed}")
        self._allowed -= count

    def consume(self, count: int) -> int:
        """Account for bytes passed on; the credit to give back now, or 0 to wait until it is worth a frame."""
        self._owed += count
        if self._owed < WINDOW // 4:
            return 0
        grant, self._owed = self._owed, 0
        self._allowed += grant
        return grant
