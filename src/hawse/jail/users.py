"""Each sandbox's QEMU has its own user id, which no other sandbox of this host gets while the monitor lives.

The kernel keeps the record: the byte of one file at the offset of an id stands for it, whatever range it was taken
from. The monitor locks its byte (fcntl(2), F_SETLK). The lock ends with the monitor, however that ends. The id needs no
entry in /etc/passwd, since nothing looks it up.
"""

from __future__ import annotations

import fcntl
import os
from zlib import crc32

from hawse.errors import HostError

DEFAULT_FILE = "/run/hawse.users"
_TRIES = 65536


class Held:
    """A user id, until it is closed."""

    def __init__(self, user: int, lock: int) -> None:
        self.user = user
        self._lock = lock

    def close(self) -> None:
        """Release the id. No process may be running as this user any more."""
        os.close(self._lock)


def take(first: int, last: int, *, name: str, path: str = DEFAULT_FILE) -> Held:
    """Take an id from ``first`` to ``last`` that no other sandbox of this host has.

    ``name`` decides where the search begins, so that few ids are tried. A process may take one id at a time, since it
    loses all its locks when the file is closed. Raises :class:`HostError` if all ids are taken or the file cannot be
    used.
    """
    count = last - first + 1
    start = crc32(name.encode()) % count
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise HostError(
            f"cannot take a user id for QEMU: {path}: {error.strerror}", hint="make its directory writable for root"
        ) from None
    for offset in range(min(count, _TRIES)):
        user = first + (start + offset) % count
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, user)
        except BlockingIOError:
            continue
        except OSError as error:
            os.close(lock)
            raise HostError(f"cannot take a user id for QEMU: {path}: {error.strerror}") from None
        return Held(user, lock)
    os.close(lock)
    raise HostError(f"all user ids from {first} to {last} are in use", hint="give more of them in vm.users")
