"""Remove unused images from the cache; hold an image while a sandbox uses it.

A pointer (:func:`hawse.vm.image.store.current_path`) names the image of one version of hawse with one [image]
section. An image is removed if no pointer names it, no sandbox holds it, and it was not in use for an hour: a start may
have read the pointer without holding the image yet. A pointer is removed if it was not used for a month: other versions
of hawse and other configurations may share the cache. The caller must hold the lock of builds.
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
#: The age in seconds after which an unused pointer belongs to a version of hawse that is not used any more.
UNUSED = 30 * 24 * 3600.0
#: The precision of a pointer's recorded use, in seconds.
_EXACTNESS = 24 * 3600.0
_DIGEST = re.compile(r"[0-9a-f]{64}")
_WORK = ".building-"
_REMOVED = ".removed-"


def hold(directory: str) -> int:
    """Hold an image while the returned descriptor is open; other programs do not inherit it.

    The programs of a sandbox read the image's files as long as it runs. Raises :class:`ImageError` if it was removed.
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
    """Remove unused pointers, except ``keep``, and unused images; returns the digests of the latter. Raises OSError."""
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
        elif name.startswith((_WORK, _REMOVED)):  # of a killed build, since this process holds the lock
            _remove_tree(path)
    return [
        name
        for name in sorted(os.listdir(images))
        if _DIGEST.fullmatch(name) and name not in named and _remove(images, name, now)
    ]


def _remove(images: str, digest: str, now: float) -> bool:
    """Remove an image unless it was in use within the last hour or a sandbox holds it. Returns whether it did."""
    directory = f"{images}/{digest}"
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if now - os.fstat(fd).st_mtime < GRACE:
            return False
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Rename it under the lock, so that a process that waits for the lock does not find the image any more.
        os.rename(directory, f"{images}/{_REMOVED}{digest}")
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    _remove_tree(f"{images}/{_REMOVED}{digest}")
    return True


def _remove_tree(path: str) -> None:
    import shutil  # here, so that a monitor, which only calls hold(), starts faster

    shutil.rmtree(path, ignore_errors=True)


def _read(pointer: str) -> str:
    # Without O_NOATIME the kernel would record this as a use of the pointer.
    fd = os.open(pointer, os.O_RDONLY | os.O_NOATIME | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return os.read(fd, 65).decode(errors="replace").strip()
    finally:
        os.close(fd)


def _gone(directory: str, reason: str) -> ImageError:
    return ImageError(
        f"the guest image in {directory} was removed after this start began: {reason.lower()}", hint="try again"
    )
