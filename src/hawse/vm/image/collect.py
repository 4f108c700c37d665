"""Which images of the cache may go; a sandbox keeps its own by :mod:`hawse.vm.image.lock`.

A pointer (:func:`hawse.vm.image.store.current_path`) names the image of one version of hawse with one [image]
section. An image goes when no pointer names it, no sandbox holds it, and it was not in use for an hour: a start may
have read the pointer, and not hold the image yet. A pointer goes when nothing has used it for a month and no sandbox
holds its image: other versions of hawse and other configurations may use the same cache, and a cache that is
mounted read-only records no use. To be called with the lock of builds.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from hawse.vm.image.lock import LOCK, exclusive, is_held

#: Longer than any start takes from reading a pointer to :func:`hawse.vm.image.lock.hold`, in seconds.
GRACE = 3600.0
#: The age in seconds after which an unused pointer belongs to a version of hawse that is not used any more.
UNUSED = 30 * 24 * 3600.0
#: The precision of a pointer's recorded use, in seconds.
_EXACTNESS = 24 * 3600.0
_DIGEST = re.compile(r"[0-9a-f]{64}")
_WORK = ".building-"
_REMOVED = ".removed-"


def note_use(pointer: str) -> None:
    """Record that a pointer is used, in its access time. Its modification time is that of the last build."""
    with suppress(OSError):  # a cache that is mounted read-only
        status = os.stat(pointer)
        if time.time() - status.st_atime > _EXACTNESS:
            os.utime(pointer, ns=(time.time_ns(), status.st_mtime_ns))


def note_replaced(images: str, digest: str) -> None:
    """Record that an image is no longer the one that a pointer names, in the time of its directory."""
    if _DIGEST.fullmatch(digest):
        with suppress(OSError):  # it has gone, or is another user's
            os.utime(f"{images}/{digest}")


def collect(images: str, *, keep: str, warn: Callable[[str], None], now: float | None = None) -> list[str]:
    """Remove what may go, but not the pointer ``keep``; the digests of removed images.

    What cannot be examined or removed stays, and ``warn`` is called with a sentence about it. Raises OSError where the
    directory itself cannot be read.
    """
    now = time.time() if now is None else now
    named = set()
    for name in sorted(os.listdir(images)):
        path = f"{images}/{name}"
        with _reported(path, warn):
            if name.startswith("current-"):
                digest = _read(path)
                if path != keep and _is_unused(path, now) and not is_held(f"{images}/{digest}"):
                    note_replaced(images, digest)
                    os.unlink(path)
                else:
                    named.add(digest)
            elif name.startswith(_WORK):  # of a build that was killed: nobody else has the lock
                _remove_tree(path)
    removed = []
    for name in sorted(os.listdir(images)):
        path = f"{images}/{name}"
        with _reported(path, warn):
            if name.endswith(LOCK):
                _remove_lock(path)
            elif name.startswith(_REMOVED):
                _remove_unheld(path)
            elif _DIGEST.fullmatch(name) and name not in named and _remove(images, name, now):
                removed.append(name)
    return removed


def set_aside(images: str, digest: str) -> str:
    """Rename an image, so that its name is free for another; returns the new path. Raises OSError.

    Its lock gets the name that goes with it: a sandbox that holds the image keeps it from :func:`collect` as before.
    """
    path = f"{images}/{_REMOVED}{digest}.{time.time_ns()}"
    os.rename(f"{images}/{digest}", path)
    with suppress(FileNotFoundError):  # nothing has held it
        os.rename(f"{images}/{digest}{LOCK}", f"{path}{LOCK}")
    return path


def _remove(images: str, digest: str, now: float) -> bool:
    """Remove an image unless it was in use within the last hour or a sandbox holds it. Returns whether it did."""
    directory = f"{images}/{digest}"
    if not os.path.isdir(directory):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    if now - os.stat(directory).st_mtime < GRACE:
        return False
    with exclusive(directory) as free:
        if free:
            # A start that waits for the lock then finds no image by its name.
            _remove_with_lock(set_aside(images, digest))
    return free


def _remove_unheld(path: str) -> None:
    """Remove an image that was set aside, unless a sandbox holds it."""
    with exclusive(path) as free:
        if free:
            _remove_with_lock(path)


def _remove_with_lock(path: str) -> None:
    _remove_tree(path)
    os.unlink(f"{path}{LOCK}")


def _remove_lock(path: str) -> None:
    """Remove a lock whose image has gone; one that is being waited for is of no use to whoever waits."""
    directory = path.removesuffix(LOCK)
    of_image = _DIGEST.fullmatch(os.path.basename(directory)) or os.path.basename(directory).startswith(_REMOVED)
    if of_image and not os.path.lexists(directory):
        with suppress(FileNotFoundError):  # it went with its image just now
            os.unlink(path)


def _remove_tree(path: str) -> None:
    import shutil  # here, since a start, which only calls note_use(), does without it

    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


@contextmanager
def _reported(path: str, warn: Callable[[str], None]) -> Iterator[None]:
    """Report the failure of one entry of the directory, and continue with the others."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        warn(f"{path} is not removed from the cache of images: {reason} [remove it by hand if nothing uses it]")


def _is_unused(pointer: str, now: float) -> bool:
    status = os.stat(pointer)
    return now - max(status.st_atime, status.st_mtime) > UNUSED


def _read(pointer: str) -> str:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(pointer, flags | os.O_NOATIME)  # else this would be a use of it
    except PermissionError:  # another user's (open(2)): it is used, then
        fd = os.open(pointer, flags)
    try:
        return os.read(fd, 65).decode(errors="replace").strip()
    finally:
        os.close(fd)
