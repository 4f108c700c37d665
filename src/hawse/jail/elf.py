"""Read the path of a program's loader from its ELF headers. Standard library only."""

from __future__ import annotations

import struct

#: A 64-bit little-endian program header (ELF-64 Object File Format 1.5, section 6). In the file header, the offset of
#: their table is at 32, and their size and number are at 54 (section 3).
_PROGRAM = struct.Struct("<IIQQQQQQ")
_CLASS_64_LITTLE = b"\x7fELF\x02\x01"
_PT_INTERP = 3
_MAX_PATH = 4096


def interpreter(path: str) -> str:
    """The path of the program's loader; "" for a static program, and for a file that is not a 64-bit ELF program.

    Raises OSError.
    """
    with open(path, "rb") as file:
        head = file.read(64)
        if len(head) < 64 or not head.startswith(_CLASS_64_LITTLE):
            return ""
        [table] = struct.unpack_from("<Q", head, 32)
        size, count = struct.unpack_from("<HH", head, 54)
        for number in range(min(count, 256)):
            file.seek(table + number * size)
            entry = file.read(_PROGRAM.size)
            if len(entry) < _PROGRAM.size:
                return ""
            kind, _, offset, _, _, length, _, _ = _PROGRAM.unpack(entry)
            if kind == _PT_INTERP:
                file.seek(offset)
                return file.read(min(length, _MAX_PATH)).split(b"\0")[0].decode(errors="surrogateescape")
    return ""
