"""Files: replaced as a whole, and small ones of the kernel read as text. Standard library only."""

from __future__ import annotations

import os
from contextlib import suppress

#: More than any file of procfs, sysfs or cgroupfs that hawse reads.
_MAX_TEXT = 1024 * 1024


def replace_file(path: str, data: bytes, *, mode: int = 0o644, durable: bool = False) -> None:
    """Replace a file, or create it: a reader sees the old content or the new one. Raises OSError.

    The temporary file is beside it, with the file's name in it and no pid: processes in two PID namespaces may have the
    same. So callers that may run at the same time hold a lock. ``durable``: the content is on the disk before the name
    is, for what is needed after a power failure.
    """
    directory, name = os.path.split(path)
    temporary = os.path.join(directory, f".{name}.new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        with open(os.open(temporary, flags, mode), "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.rename(temporary, path)
        if durable:
            sync_file(directory or ".")
    except OSError:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def sync_file(path: str) -> None:
    """Have the kernel write a file or the entries of a directory to the disk (fsync(2)). Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_text(path: str) -> str:
    """The start of a small file, without white space at its ends; "" if it cannot be read or is not text."""
    try:
        with open(path) as file:
            return file.read(_MAX_TEXT).strip()
    except (OSError, UnicodeDecodeError):
        return ""


def read_attribute(path: str) -> str:
    """A small file without white space at its ends. Raises OSError."""
    with open(path) as file:
        return file.read(_MAX_TEXT).strip()


def write_attribute(path: str, text: str) -> None:
    """Write to a file of sysfs or cgroupfs: in one call, which the kernel takes as one value. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
