"""Files: replaced as a whole, and small ones of the kernel read as text. Standard library only."""

from __future__ import annotations

import os
from contextlib import suppress

#: More than any file of procfs, sysfs or cgroupfs that hawse reads.
_MAX_TEXT = 1024 * 1024


def replace_file(path: str, data: bytes, *, mode: int | None = None, durable: bool = False) -> None:
    """Replace a file, or create it: a reader sees the old content or the new one. Raises OSError.

    ``mode`` is independent of the umask; None: 0666 without the bits of the umask, as the shell creates files.
    ``durable``: the content is on the disk before the name is, for what is needed after a power failure.

    The temporary file is beside the file. Its name is random, since neither other writers nor users who may write to
    the directory must know it, and it is new: nobody else has it open, and it is no link. A pid would not do: processes
    in two PID namespaces may have the same. A symbolic link at ``path`` is replaced, not followed.
    """
    temporary = os.path.join(os.path.dirname(path), f".hawse-{os.urandom(8).hex()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with open(os.open(temporary, flags, 0o666 if mode is None else mode), "wb") as file:
        try:
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
            os.rename(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
    if durable:
        sync_file(os.path.dirname(path) or ".")


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
