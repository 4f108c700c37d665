"""Which images of the cache may go, and how a sandbox keeps its own.

A pointer (:func:`hawse.vm.image.store.current_path`) names the image of one version of hawse with one [image]
section. An image goes when no pointer names it, no sandbox holds it, and it was not in use for an hour: a start may
have read the pointer, and not hold the image yet. A pointer goes when nothing has used it for a month: other versions
of hawse and other configurations may have the same cache. To be called with the lock of builds.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from contextlib import suppress

from hawse.errors import ImageError

#: Longer than any start takes from reading a pointer to :func:`hold`, in seconds.
GRACE = 3600.0
#: A pointer that was not used for so long, in seconds, is of a hawse that is not used any more.
UNUSED = 30 * 24 * 3600.0
#: How exactly the use of a pointer is recorded.
_EXACTNESS = 24 * 3600.0
_DIGEST = re.compile(r"[0-9a-f]{64}")
_WORK = ".building-"
_REMOVED = ".removed-"


def hold(directory: str) -> int:
    """Keep an image for as long as the descriptor is open, which no other program inherits.

    Raises :class:`ImageError` where it has gone: the programs of a sandbox read its files for as long as it runs.
    """
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _gone(directory, error.strerror or "") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        if not os.path.samestat(os.fstat(fd), os.stat(directory)):
            raise _gone(directory, "replaced")
    except OSError as error:
        os.close(fd)
        raise _gone(directory, error.strerror or "") from None
    except BaseException:
        os.close(fd)
        raise
    return fd


def note_use(pointer: str) -> None:
    """Record that a pointer is used, in its access time. Its modification time is that of the last build."""
    with suppress(OSError):  # a cache that is mounted read-only
        status = os.stat(pointer)
        if time.time() - status.st_atime > _EXACTNESS:
            os.utime(pointer, ns=(time.time_ns(), status.st_mtime_ns))


def note_replaced(images: str, digest: str) -> None:
    """Record that an image is no longer the one that a pointer names, in the time of its directory."""
    if _DIGEST.fullmatch(digest):
        with suppress(FileNotFoundError):
            os.utime(f"{images}/{digest}")


def collect(images: str, *, keep: str, now: float | None = None) -> list[str]:
    """Remove what may go, but not the pointer ``keep``; the digests of removed images. Raises OSError."""
    now = time.time() if now is None else now
    named = set()
    for name in sorted(os.listdir(images)):
        path = f"{images}/{name}"
        if name.startswith("current-"):
            digest = _read(path)
            status = os.stat(path)
            if path != keep and now - max(status.st_atime, status.st_mtime) > UNUSED:
                note_replaced(images, digest)
                os.unlink(path)
            else:
                named.add(digest)
        elif name.startswith((_WORK, _REMOVED)):  # of a build that was killed: nobody else has the lock
            _remove_tree(path)
    return [
        name
        for name in sorted(os.listdir(images))
        if _DIGEST.fullmatch(name) and name not in named and _remove(images, name, now)
    ]


def _remove(images: str, digest: str, now: float) -> bool:
    """Remove an image unless it was in use a moment ago, or a sandbox holds it."""
    directory = f"{images}/{digest}"
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if now - os.fstat(fd).st_mtime < GRACE:
            return False
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Who waits for the lock finds no image by its name then.
        os.rename(directory, f"{images}/{_REMOVED}{digest}")
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    _remove_tree(f"{images}/{_REMOVED}{digest}")
    return True


def _remove_tree(path: str) -> None:
    import shutil  # here, since a monitor, which only calls hold(), starts the sooner without it

    shutil.rmtree(path, ignore_errors=True)


def _read(pointer: str) -> str:
    # Without O_NOATIME this would be a use of it.
    fd = os.open(pointer, os.O_RDONLY | os.O_NOATIME | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return os.read(fd, 65).decode(errors="replace").strip()
    finally:
        os.close(fd)


def _gone(directory: str, reason: str) -> ImageError:
    return ImageError(
        f"the guest image in {directory} was removed after this start began: {reason.lower()}", hint="try again"
    )
