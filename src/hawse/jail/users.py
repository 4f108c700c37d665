"""A user id of its own for each sandbox's QEMU: none but the sandbox's monitor, while it lives, has it.

The kernel keeps count of who has which: a byte of one file stands for each id, and the monitor locks it (fcntl(2),
F_SETLK). Whatever ends the monitor gives the id back. No user is made for it, as nobody looks it up.
"""

from __future__ import annotations

import fcntl
import os
from zlib import crc32

from hawse.errors import HostError

DEFAULT_FILE = "/run/hawse.users"
_TRIES = 65536


class Held:
    """A user id, as long as this is open."""

    def __init__(self, user: int, lock: int) -> None:
        self.user = user
        self._lock = lock

    def close(self) -> None:
        """Give it back. The id of a process that is still there must not be given back."""
        os.close(self._lock)


def take(first: int, last: int, *, name: str, path: str = DEFAULT_FILE) -> Held:
    """An id from ``first`` to ``last`` that no other sandbox of this host has.

    ``name`` decides where the search begins, so that few are tried. A process must have one at a time: closing the file
    would end all its locks. Raises :class:`HostError` where all are taken, or the file cannot be used.
    """
    count = last - first + 1
    start = crc32(name.encode()) % count
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise HostError(f"cannot take a user id for QEMU: {path}: {error.strerror}") from None
    for offset in range(min(count, _TRIES)):
        place = (start + offset) % count
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
        except BlockingIOError:
            continue
        except OSError as error:
            os.close(lock)
            raise HostError(f"cannot take a user id for QEMU: {path}: {error.strerror}") from None
        return Held(first + place, lock)
    os.close(lock)
    raise HostError(f"all user ids from {first} to {last} are in use", hint="give more of them in vm.users")
