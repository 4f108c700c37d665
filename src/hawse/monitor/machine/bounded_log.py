"""Log files of bounded size for the output of the guest and QEMU, with their tails for error messages."""

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
    """Writes at most :data:`FILE_LIMIT` bytes to ``path``, then renames the file to ``path``.old and starts a new
    one."""

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
        """The last lines, without control characters: the guest could use them to attack a terminal."""
        text = self._tail.decode("utf-8", "replace").replace("\r\n", "\n")
        clean = "".join(c for c in text if c == "\n" or c.isprintable())
        return "\n".join(clean.strip().splitlines()[-lines:])

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def with_console_tail(reason: HawseError, console: str) -> HawseError:
    """The reason why a VM ended, with the tail of its console if the reason has no other evidence."""
    if reason.evidence:
        return reason
    silent = "the console is empty: a processor was reset, as by a triple fault, or the agent ended"
    return reason.with_context(hint="the end of the console log follows" if console else silent, evidence=console)


async def collect(reader: asyncio.StreamReader, log: BoundedLog) -> None:
    """Copy a stream into a log until it ends. Write errors are ignored: they must not stop the guest."""
    while data := await reader.read(65536):
        try:
            log.write(data)
        except OSError:
            continue
