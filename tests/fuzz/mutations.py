"""Mutations of inputs: of bytes, of JSON as a tree, and of frames, so that most get past the outermost parser."""

from __future__ import annotations

import json
import math
from random import Random
from typing import Any

from hawse.link.frames import CREDIT, DATA, EOF, EVENT, HEADER, REPLY
from tests.fuzz.target import FRAMES, JSON, LINES

#: Longer inputs are not used: separate tests cover the greater limits.
MAX_INPUT = 8192
_ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 64, 127, 128, 255, 256, 65536, 2**20, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64,
    -(2**63), 0.5, 1e308, math.nan, math.inf, "", "x", "0", "\0", "\n", "..", "../../etc/passwd", "/dev/sda",
    "\x1b]0;x\x07\x1b[2J", "\ud800", "\u202e", "x" * 70, "=", [], {}, [[]], {"": {}}, 10**400,
)  # fmt: skip
#: As JSON: each use decodes a new value.
_VALUES = [json.dumps(value) for value in _ODD]
_LONG = [json.dumps("y" * 3000), json.dumps([1] * 300), "[" * 200 + "]" * 200, '{"a":' * 200 + "1" + "}" * 200]
_NUMBERS = (0, 1, 2, 3, 4, 5, 9, 63, 64, 65, 66, 67, 128, 129, 192, 255, 256, 2**16, 2**18, 2**31, 2**31 + 1, 2**32 - 1)
_PIECES = (b"\0", b"\xff", b"\n", b"\r\n", b'"', b"[", b"]", b"{", b"}", b",", b":", b"\\ud800", b"\xf0\x9f\x98\x80")


class Mutator:
    """Makes inputs of one form."""

    def __init__(self, form: str, random: Random) -> None:
        self._form = form
        self._random = random

    def mutate(self, data: bytes, other: bytes) -> bytes:
        """A variant of ``data``, possibly with parts of ``other``, which is an input of the same form."""
        before = data
        for _ in range(self._random.choice((1, 1, 2, 4))):
            if self._form == FRAMES and self._random.random() < 0.9:
                data = self._frames(data, other)
            elif self._form == LINES and self._random.random() < 0.9:
                data = self._lines(data, other)
            elif self._form == JSON and self._random.random() < 0.9:
                data = self._json(data, other)
            else:
                data = self._bytes(data, other)
        return data if len(data) <= MAX_INPUT else before[:MAX_INPUT]

    def _bytes(self, data: bytes, other: bytes) -> bytes:
        random = self._random
        at = random.randrange(len(data) + 1)
        end = min(len(data), at + random.choice((0, 1, 1, 2, 4, 16, 64)))
        way = random.randrange(6)
        if way == 0:
            piece = bytes(random.randrange(256) for _ in range(end - at))
        elif way == 1:
            piece = b""
        elif way == 2:
            piece = data[at:end] * random.choice((2, 3, 50))
        elif way == 3:
            start = random.randrange(len(other) + 1)
            piece = other[start : start + random.choice((1, 4, 16, 64, 256))]
        elif way == 4:
            piece = random.choice(_PIECES)
        else:
            return data[:at]
        return data[:at] + piece + data[end:]

    def _json(self, data: bytes, other: bytes) -> bytes:
        try:
            value, donor = json.loads(data), json.loads(other)
            return json.dumps(self._tree(value, donor)).encode()
        except (ValueError, RecursionError):
            return self._bytes(data, other)

    def _tree(self, value: Any, donor: Any) -> Any:
        """The value with one place of it changed, found by a random walk from its root."""
        random = self._random
        if isinstance(value, dict | list) and value and random.random() < 0.85:
            place: Any = value
            key = random.choice(list(value)) if isinstance(value, dict) else random.randrange(len(value))
            way = random.randrange(12)
            if way == 0:
                del place[key]
            elif way == 1 and isinstance(value, list):
                place.insert(key, donor)
            elif way == 1:
                place[random.choice(("x", "", "..", "\0", f"{key}x"))] = donor
            else:
                place[key] = self._tree(place[key], donor)
            return place
        if isinstance(value, int | float) and random.random() < 0.4:
            return -value if random.random() < 0.3 else value + random.choice((-1, 1, 2, 1000))
        if isinstance(value, str) and random.random() < 0.6:
            return self._bytes(value.encode(errors="replace"), b"\x1b[1m max 0 \n\n").decode(errors="surrogateescape")
        if random.random() < 0.3:
            return self._part(donor)
        if random.random() < 0.1:
            return [value]
        return json.loads(random.choice(_VALUES if random.random() < 0.97 else _LONG))

    def _part(self, donor: Any) -> Any:
        while isinstance(donor, dict | list) and donor and self._random.random() < 0.7:
            donor = self._random.choice(list(donor.values()) if isinstance(donor, dict) else donor)
        return donor

    def _lines(self, data: bytes, other: bytes) -> bytes:
        lines = [line for line in data.split(b"\n") if line]
        others = [line for line in other.split(b"\n") if line] or [b"{}"]
        return b"".join(line + b"\n" for line in self._list(lines, others, lambda one: self._json(one, others[0])))

    def _frames(self, data: bytes, other: bytes) -> bytes:
        frames = self._list(split(data), split(other) or [(64, EOF, b"")], lambda one: self._frame(one, other))
        return b"".join(HEADER.pack(stream, kind, len(payload)) + payload for stream, kind, payload in frames)

    def _frame(self, frame: tuple[int, int, bytes], other: bytes) -> tuple[int, int, bytes]:
        random = self._random
        stream, kind, payload = frame
        way = random.randrange(8)
        if way == 0:
            return random.choice(_NUMBERS), kind, payload
        if way == 1:
            kind = random.choice((REPLY, EVENT, DATA, CREDIT, EOF, random.randrange(256)))
            return stream, kind, random.choice(_NUMBERS).to_bytes(4, "big") if kind == CREDIT else payload
        if kind == CREDIT:
            return stream, kind, random.choice(_NUMBERS).to_bytes(4, "big")
        if kind in (REPLY, EVENT):
            donors = [piece for _, other_kind, piece in split(other) if other_kind == kind]
            return stream, kind, self._json(payload, random.choice(donors) if donors else payload)
        return stream, kind, self._bytes(payload, other)

    def _list(self, entries: list[Any], others: list[Any], change: Any) -> list[Any]:
        """The entries with one of them changed, removed, repeated, moved, or put in from others."""
        random = self._random
        if not entries:
            return [random.choice(others)]
        at = random.randrange(len(entries))
        way = random.randrange(10)
        if way == 0:
            del entries[at]
        elif way == 1:
            entries[at:at] = [entries[at]] * random.choice((1, 1, 5, 40))
        elif way == 2:
            entries.insert(random.randrange(len(entries)), entries.pop(at))
        elif way in (3, 4):
            entries.insert(at + random.randrange(2), random.choice(others))
        else:
            entries[at] = change(entries[at])
        return entries


def split(data: bytes) -> list[tuple[int, int, bytes]]:
    """The frames of an input, whether the protocol allows them or not; an unfinished one is left out."""
    frames = []
    at = 0
    while len(data) - at >= HEADER.size:
        stream, kind, length = HEADER.unpack_from(data, at)
        at += HEADER.size
        if length > len(data) - at:
            break
        frames.append((stream, kind, data[at : at + length]))
        at += length
    return frames
