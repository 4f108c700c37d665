"""Frames: the unit of the link between the monitor, the agent and the proxies. ``docs/link.md`` is the specification.

A frame is a header of nine bytes (stream id, type, payload length, big-endian) and its payload. The payload's length is
limited for each type. The limit is checked when the header has arrived, before any payload is stored: either peer may
be hostile.
"""

from __future__ import annotations

import struct

from hawse.errors import LinkError

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from collections.abc import Mapping

HEADER = struct.Struct(">IBI")

CALL, REPLY, EVENT, DATA, CREDIT, EOF = 1, 2, 3, 4, 5, 6

#: Maximum payload of a control message in bytes. It may contain a whole OCI configuration: engines write some tens of
#: kilobytes.
MAX_CONTROL = 4 * 1024 * 1024
#: Maximum payloads that the monitor accepts from the agent. JSON can take 25 times its size in memory while it is
#: parsed.
FROM_GUEST = {REPLY: 1024 * 1024, EVENT: 128 * 1024}
MAX_DATA = 64 * 1024
#: 64 streams for each of 33 million processes. Numbers of processes are not reused.
MAX_STREAM = 2**31

CONTROL_STREAM = 0
_CONTROL_TYPES = (CALL, REPLY, EVENT)
# type -> (minimum, maximum) payload length in bytes
_LENGTHS = {
    CALL: (2, MAX_CONTROL),
    REPLY: (2, MAX_CONTROL),
    EVENT: (2, MAX_CONTROL),
    DATA: (1, MAX_DATA),
    CREDIT: (4, 4),
    EOF: (0, 0),
}

Frame = tuple[int, int, bytes]
"""Stream id, type, payload."""


def check(stream: int, kind: int, length: int) -> None:
    """Raise :class:`LinkError` unless the protocol permits a frame with this header."""
    if kind not in _LENGTHS:
        raise LinkError(f"link: frame of unknown type {kind}")
    if (stream == CONTROL_STREAM) != (kind in _CONTROL_TYPES) or stream > MAX_STREAM:
        raise LinkError(f"link: frame of type {kind} on stream {stream}")
    least, greatest = _LENGTHS[kind]
    if not least <= length <= greatest:
        raise LinkError(f"link: frame of type {kind} with {length} bytes, allowed are {least} to {greatest}")


def encode(stream: int, kind: int, payload: bytes = b"") -> bytes:
    """Encode a frame. Raises :class:`LinkError` if the peer would refuse it."""
    check(stream, kind, len(payload))
    return HEADER.pack(stream, kind, len(payload)) + payload


class Decoder:
    """Splits a byte stream, fed in pieces of any size, into frames. Stores at most one frame and one piece."""

    def __init__(self, most: Mapping[int, int] | None = None) -> None:
        """``most``: the maximum payload in bytes for frame types whose limit is lower than the protocol's."""
        self._buffer = bytearray()
        self._most = most or {}

    def feed(self, piece: bytes) -> list[Frame]:
        """The frames that ``piece`` completes. Raises :class:`LinkError` at the first invalid header."""
        buffer = self._buffer
        buffer += piece
        frames: list[Frame] = []
        at = 0
        while len(buffer) - at >= HEADER.size:
            stream, kind, length = HEADER.unpack_from(buffer, at)
            check(stream, kind, length)
            if length > self._most.get(kind, length):
                raise LinkError(f"link: frame of type {kind} with {length} bytes, allowed are {self._most[kind]}")
            end = at + HEADER.size + length
            if len(buffer) < end:
                break
            frames.append((stream, kind, bytes(buffer[at + HEADER.size : end])))
            at = end
        del buffer[:at]
        return frames

    @property
    def pending(self) -> int:
        """Number of bytes of an incomplete frame: if it is not 0 at the end of the stream, the stream was truncated."""
        return len(self._buffer)
