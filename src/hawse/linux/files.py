"""Replace files atomically, read and write small files of the kernel. Standard library only."""

from __future__ import annotations

import os
from contextlib import suppress

#: More than any file of procfs, sysfs or cgroupfs that hawse reads.
_MAX_TEXT = 1024 * 1024


def replace_file(path: str, data: bytes, *, mode: int | None = None, durable: bool = False) -> None:
    """Replace a file, or create it: a reader sees the old content or the new one. Raises OSError.

    ``mode`` is independent of the umask; None: 0666 without the bits of the umask, as a shell creates files.
    ``durable``: the content is written to the disk before the name, for files that are needed after a power failure.

    The temporary file is in the same directory. Its name is random, so that neither other writers nor users who may
    write to the directory can guess it. O_EXCL ensures that it is a new file: no other process has opened it, and it
    is not a link. A pid in its name would not be unique: processes in two PID namespaces may have equal pids. A
    symbolic link at ``path`` is replaced, not followed.
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
    """Write a file, or the entries of a directory, to the disk (fsync(2)). Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_text(path: str) -> str:
    """The text of a small file without surrounding white space; "" if it cannot be read or is not text."""
    try:
        with open(path) as file:
            return file.read(_MAX_TEXT).strip()
    except (OSError, UnicodeDecodeError):
        return ""


def read_attribute(path: str) -> str:
    """The text of a small file without surrounding white space. Raises OSError."""
    with open(path) as file:
        return file.read(_MAX_TEXT).strip()


def write_attribute(path: str, text: str) -> None:
    """Write a file of sysfs or cgroupfs in one call, which the kernel takes as one value. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
