"""What a guest or QEMU wrote, kept in bounds: a log file that rotates once, and its tail for error messages."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

    from hawse.errors import HawseError

#: Bytes of one file. A sandbox has four logs of two files each, which stay below 1 MiB together: the state directory
#: is on /run, in the host's memory.
FILE_LIMIT = 112 * 1024
TAIL = 4096


class BoundedLog:
    """Writes to ``path`` up to :data:`FILE_LIMIT` bytes, then starts anew and keeps the former as ``path``.old."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115  (lives as long as the sandbox)
        self._size = 0
        self._tail = b""

    def write(self, data: bytes) -> None:
        """Append."""
        if self._size + len(data) > FILE_LIMIT:
            self._file.close()
            os.rename(self._path, f"{self._path}.old")
            self._file = open(self._path, "wb", buffering=0)  # noqa: SIM115
            self._size = 0
        self._file.write(data)
        self._size += len(data)
        self._tail = (self._tail + data)[-TAIL:]

    def tail(self, lines: int = 15) -> str:
        """The last lines, with everything that could steer a terminal taken out: a guest wrote them."""
        text = self._tail.decode("utf-8", "replace").replace("\r\n", "\n")
        clean = "".join(c for c in text if c == "\n" or c.isprintable())
        return "\n".join(clean.strip().splitlines()[-lines:])

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def with_last_words(reason: HawseError, console: str) -> HawseError:
    """Why a machine ended, with the tail of its console where nothing else is shown."""
    if reason.evidence:
        return reason
    silent = "its console said nothing: a processor was reset, as by a triple fault, or its agent ended"
    return reason.with_context(hint="the last words of its console follow" if console else silent, evidence=console)


async def collect(reader: asyncio.StreamReader, log: BoundedLog) -> None:
    """Copy a stream into a log until it ends. A log that cannot be written must not stop the guest."""
    while data := await reader.read(65536):
        try:
            log.write(data)
        except OSError:
            continue
