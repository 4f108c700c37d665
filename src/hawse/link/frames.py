"""Frames: the unit of the link between the monitor, the agent and the proxies. ``docs/link.md`` is the specification.

A frame is a header of nine bytes (stream id, type, payload length, big-endian) and its payload. Every type has a
limit that is checked when the header has arrived, before a byte of payload is stored: either peer may be hostile.
"""

from __future__ import annotations

import struct

from hawse.errors import LinkError

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from collections.abc import Mapping

HEADER = struct.Struct(">IBI")

CALL, REPLY, EVENT, DATA, CREDIT, EOF = 1, 2, 3, 4, 5, 6

#: Control messages carry a whole OCI specification, which real engines write in some tens of kilobytes.
MAX_CONTROL = 4 * 1024 * 1024
#: The greatest payloads that the monitor accepts from the agent. JSON can take 25 times its size while it is parsed.
FROM_GUEST = {REPLY: 1024 * 1024, EVENT: 128 * 1024}
MAX_DATA = 64 * 1024
MAX_STREAM = 2**28

CONTROL_STREAM = 0
_CONTROL_TYPES = (CALL, REPLY, EVENT)
# type -> (least, greatest) payload length in bytes
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
    """Raise :class:`LinkError` unless a frame of this header is one that the protocol knows."""
    if kind not in _LENGTHS:
        raise LinkError(f"link: frame of unknown type {kind}")
    if (stream == CONTROL_STREAM) != (kind in _CONTROL_TYPES) or stream > MAX_STREAM:
        raise LinkError(f"link: frame of type {kind} on stream {stream}")
    least, greatest = _LENGTHS[kind]
    if not least <= length <= greatest:
        raise LinkError(f"link: frame of type {kind} with {length} bytes, allowed are {least} to {greatest}")


def encode(stream: int, kind: int, payload: bytes = b"") -> bytes:
    """The frame's bytes. Raises :class:`LinkError` where the peer would refuse them."""
    check(stream, kind, len(payload))
    return HEADER.pack(stream, kind, len(payload)) + payload


class Decoder:
    """Cuts a byte stream, in pieces of any size, into frames. Stores at most one frame and one piece."""

    def __init__(self, most: Mapping[int, int] | None = None) -> None:
        """``most``: the greatest payload of frames of a type in bytes, where it is less than the protocol's."""
        self._buffer = bytearray()
        self._most = most or {}

    def feed(self, piece: bytes) -> list[Frame]:
        """The frames completed by ``piece``. Raises :class:`LinkError` at the first header that breaks a rule."""
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
        """Bytes of an unfinished frame: not 0 at the end of the stream means that it was cut off."""
        return len(self._buffer)
