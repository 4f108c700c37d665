"""Kernel images built by the test: an ELF file with notes, and a bzImage with any payload."""

from __future__ import annotations

import struct
from collections.abc import Sequence


def note(name: bytes = b"Xen\0", kind: int = 18, data: bytes = bytes(8)) -> bytes:
    """An ELF note; by default the one with a kernel's PVH entry point."""
    sizes = struct.pack("<III", len(name), len(data), kind)
    return sizes + name + bytes(-len(name) % 4) + data + bytes(-len(data) % 4)


def elf(notes: bytes | None = None, *, kinds: Sequence[int] = (4,), table_last: bool = False) -> bytes:
    """An ELF64 file with segments of these types, all with the same content.

    The program headers are before the notes, or after them at the end of the file. Type 4 is PT_NOTE.
    """
    notes = note() if notes is None else notes
    table = 64 + len(notes) if table_last else 64
    begin = 64 if table_last else 64 + 56 * len(kinds)
    segments = b"".join(struct.pack("<IIQQQQQQ", kind, 0, begin, 0, 0, len(notes), 0, 0) for kind in kinds)
    header = b"\x7fELF\x02\x01" + bytes(26) + struct.pack("<Q", table) + bytes(14) + struct.pack("<HH", 56, len(kinds))
    return header.ljust(64, b"\0") + (notes + segments if table_last else segments + notes)


def bz_image(payload: bytes, *, length: int | None = None, setup: int = 1, before: int = 16) -> bytes:
    """A bzImage with ``setup`` setup sectors (0 in the header means 4), and ``before`` bytes before the payload."""
    head = bytearray((1 + (setup or 4)) * 512)
    head[0x1F1] = setup
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", head, 0x248, before, len(payload) if length is None else length)
    return bytes(head) + bytes(before) + payload
