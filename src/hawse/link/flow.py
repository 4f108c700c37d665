"""Flow control by credit: the number of bytes of a stream that may be in transit. Both ends of the link use this.

Each direction of a stream starts with a credit of :data:`WINDOW` bytes. The sender spends it; the receiver returns
credit once it has passed the bytes on. So a reader that stops blocks only its own stream, and the window limits the
memory for stored bytes.
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
    """The number of bytes that a CREDIT frame grants."""
    count: int = _CREDIT.unpack(payload)[0]
    return count


class SendWindow:
    """The sender's side: the bytes that it may still send."""

    def __init__(self) -> None:
        self.available = WINDOW

    def spend(self, count: int) -> None:
        """Subtract ``count`` sent bytes; the caller has checked :attr:`available`."""
        if count > self.available:
            raise LinkError(f"link: {count} bytes sent with a credit of {self.available}")
        self.available -= count

    def grant(self, count: int) -> None:
        """Add the bytes of a CREDIT frame. Raises :class:`LinkError` if the peer grants more than it has received."""
        if not 0 < count <= WINDOW - self.available:
            raise LinkError(f"link: credit of {count} bytes for a window of {WINDOW} with {self.available} unspent")
        self.available += count


class ReceiveWindow:
    """The receiver's side: bytes that may still arrive, and passed-on bytes whose credit has not been returned yet."""

    def __init__(self) -> None:
        self._allowed = WINDOW
        self._owed = 0

    def receive(self, count: int) -> None:
        """Subtract received bytes. Raises :class:`LinkError` when the peer exceeded its credit."""
        if count > self._allowed:
            raise LinkError(f"link: {count} bytes received with a credit of {self._allowed}")
        self._allowed -= count

    def consume(self, count: int) -> int:
        """Record bytes passed on; returns the credit to grant now, or 0 while it is not worth a frame."""
        self._owed += count
        if self._owed < WINDOW // 4:
            return 0
        grant, self._owed = self._owed, 0
        self._allowed += grant
        return grant
