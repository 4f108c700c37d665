"""The lock of a guest image: a sandbox holds it for as long as it runs, and a removal needs it.

It is the file ``<digest>.lock`` next to the image, with mode 0600. flock(2) needs only permission to read: another user
who could lock the image itself would prevent every start and every removal.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from hawse.errors import ImageError

#: How the name of a lock ends.
LOCK = ".lock"
#: How long :func:`hold` waits, and how often it tries, in seconds. A removal keeps it locked while it deletes files.
_SECONDS = 10.0
_POLL = 0.02


def hold(directory: str, *, seconds: float = _SECONDS) -> int:
    """Keep an image for as long as the descriptor is open, which no other program inherits.

    Raises :class:`ImageError` where it has gone, since the programs of a sandbox read its files for as long as it runs,
    and where its lock cannot be had within ``seconds``.
    """
    path = f"{directory}{LOCK}"
    try:
        fd = open_lock(directory)
    except OSError as error:
        raise _refusal(directory, error) from None
    try:
        _wait_for(fd, directory, seconds)
        # First the image, then the lock: :func:`hawse.vm.image.collect.set_aside` renames them in this order.
        os.stat(directory)
        if not os.path.samestat(os.fstat(fd), os.stat(path)):
            raise _gone(directory, "replaced")
    except OSError as error:
        os.close(fd)
        raise _refusal(directory, error) from None
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_lock(directory: str) -> int:
    """A descriptor of an image's lock file, which is created where the cache can be written to. Raises OSError."""
    path, flags = f"{directory}{LOCK}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(path, flags)
    except FileNotFoundError:
        os.stat(directory)  # no lock for an image that has gone
        return os.open(path, flags | os.O_CREAT, 0o600)


@contextmanager
def exclusive(directory: str) -> Iterator[bool]:
    """Lock an image for the duration of the block: True, or False if a sandbox holds it."""
    fd = open_lock(directory)
    try:
        yield _try(fd, fcntl.LOCK_EX)
    finally:
        os.close(fd)


def is_held(directory: str) -> bool:
    """Whether a sandbox holds an image."""
    try:
        fd = os.open(f"{directory}{LOCK}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _try(fd, fcntl.LOCK_EX)
    finally:
        os.close(fd)


def _wait_for(fd: int, directory: str, seconds: float) -> None:
    """Get a shared lock. Raises :class:`ImageError` if another process keeps it locked for too long."""
    deadline = time.monotonic() + seconds
    while not _try(fd, fcntl.LOCK_SH):
        if time.monotonic() > deadline:
            raise ImageError(
                f"the guest image in {directory} cannot be held: another process has had its lock for {seconds:g} s",
                hint=f"`fuser {directory}{LOCK}` names the process: wait for it, or end it",
            )
        time.sleep(_POLL)  # a lock with a deadline cannot be waited for in any other way


def _try(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _refusal(directory: str, error: OSError) -> ImageError:
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return _gone(directory, reason)
    hints = {
        errno.EROFS: "build it again with `hawse image build`, where the cache can be written to",
        errno.EACCES: "run as root",
    }
    return ImageError(
        f"the guest image in {directory} cannot be held: {directory}{LOCK}: {reason.lower()}",
        hint=hints.get(error.errno or 0, "check the file, and the limits of the process and the host"),
    )


def _gone(directory: str, reason: str) -> ImageError:
    return ImageError(
        f"the guest image in {directory} was removed after this start began: {reason.lower()}", hint="try again"
    )
