"""Kernel images that the test makes: an ELF file with one note, and a bzImage around any payload."""

from __future__ import annotations

import struct


def elf(note: bytes = b"Xen\0", kind: int = 18) -> bytes:
    """A file of ELF64 with one note; by default the one that makes it bootable by PVH."""
    notes = struct.pack("<III", len(note), 8, kind) + note + bytes(8)
    header = b"\x7fELF\x02\x01" + bytes(26) + struct.pack("<Q", 64) + bytes(14) + struct.pack("<HH", 56, 1)
    header = header.ljust(64, b"\0")
    return header + struct.pack("<IIQQQQQQ", 4, 0, 120, 0, 0, len(notes), 0, 0) + notes


def bz_image(payload: bytes, *, length: int | None = None, setup: int = 1, before: int = 16) -> bytes:
    """A bzImage with ``setup`` sectors of setup (0 means 4, in the header), and ``before`` bytes before the payload."""
    head = bytearray((1 + (setup or 4)) * 512)
    head[0x1F1] = setup
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", head, 0x248, before, len(payload) if length is None else length)
    return bytes(head) + bytes(before) + payload
