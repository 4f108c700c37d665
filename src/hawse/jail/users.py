"""User ids for QEMU: each sandbox has its own, which no other sandbox of this host gets while the monitor lives.

File locks record the ids in use. One file serves for all ranges: the byte at the offset of an id represents the id. The
monitor locks its byte (fcntl(2), F_SETLK). The kernel releases the lock when the monitor exits or dies. The id does not
need an entry in /etc/passwd, since it is never looked up.
"""

from __future__ import annotations

import fcntl
import os
from zlib import crc32

from hawse.errors import HostError

DEFAULT_FILE = "/run/hawse.users"
_TRIES = 65536


class Held:
    """A user id that is reserved until it is closed."""

    def __init__(self, user: int, lock: int) -> None:
        self.user = user
        self._lock = lock

    def close(self) -> None:
        """Release the id. No process may be running as this user any more."""
        os.close(self._lock)


def take(first: int, last: int, *, name: str, path: str = DEFAULT_FILE) -> Held:
    """Reserve an id from ``first`` to ``last`` that no other sandbox of this host uses.

    ``name`` determines the first id to try, so that few ids are tried. A process may reserve only one id at a time,
    since it loses all its locks on the file when it closes the file. Raises :class:`HostError` if all ids are in use or
    the file cannot be used.
    """
    count = last - first + 1
    start = crc32(name.encode()) % count
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise HostError(
            f"cannot reserve a user id for QEMU: {path}: {error.strerror}", hint="make its directory writable for root"
        ) from None
    for offset in range(min(count, _TRIES)):
        user = first + (start + offset) % count
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, user)
        except BlockingIOError:
            continue
        except OSError as error:
            os.close(lock)
            raise HostError(f"cannot reserve a user id for QEMU: {path}: {error.strerror}") from None
        return Held(user, lock)
    os.close(lock)
    raise HostError(
        f"cannot reserve a user id for QEMU: all from {first} to {last} are in use", hint="enlarge the range vm.users"
    )
