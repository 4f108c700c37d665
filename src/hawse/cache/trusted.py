"""Directories that only root and this process's user can change: the cache and its content.

A user who can write to the cache controls the programs, guest kernels and guest memory in it. The owner of a directory
can replace its content, and so can the owner of each parent directory.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from hawse.errors import HostError

#: Maximum number of symbolic links in a path, as in the kernel (path_resolution(7)).
_MOST_LINKS = 40
_WRITABLE = stat.S_IWGRP | stat.S_IWOTH
_NO_DIRECTORY = "remove it, or set image.cache to another directory"


def check(cache: str, *below: str) -> bool:
    """Whether the directory ``cache/below...`` exists. Raises :class:`HostError` if another user can change it.

    ``cache``, each directory of ``below``, and each parent up to / must belong to root or to this process's user, and
    other users must not have write permission. For a parent of ``cache`` the sticky bit is sufficient, as in /tmp:
    other users can add files there, but cannot replace those of hawse. Symbolic links are followed, and their owners
    are checked.
    """
    path = os.path.abspath(cache)
    exists = _check(path)
    for name in below:
        path = f"{path}/{name}"
        exists = exists and _check(path)
    return exists


def check_file(path: str) -> None:
    """Raise :class:`HostError` if another user can change a file of a checked directory. Raises OSError."""
    _check_step(path, os.stat(path), sticky=False)


def make(cache: str, *below: str, mode: int = 0o755) -> str:
    """Create the directory ``cache/below...`` if it is missing, with ``mode`` independent of the umask.

    Returns its path. Raises :class:`HostError` as :func:`check`, and if it cannot be created.
    """
    check(cache, *below)
    path = os.path.join(cache, *below)
    try:
        make_directories(path, mode=mode)
    except OSError as error:
        raise HostError(
            f"cannot create {error.filename}: {error.strerror}", hint="check image.cache in the configuration"
        ) from None
    check(cache, *below)
    return path


def make_directories(path: str, *, mode: int = 0o755) -> None:
    """Like os.makedirs(), but the mode of every new directory is independent of the umask. Raises OSError."""
    parent = os.path.dirname(os.path.normpath(path))
    if parent and not os.path.isdir(parent):
        make_directories(parent, mode=mode)
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        if not os.path.isdir(path):
            raise
    else:
        os.chmod(path, mode)


def open_file(path: str, *, mode: int = 0o644, flags: int = os.O_WRONLY | os.O_TRUNC) -> int:
    """Open a file, created if it is missing, with ``mode`` independent of the umask; returns its file descriptor.

    A symbolic link in the last part of the path is not followed. Raises OSError.
    """
    fd = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        os.fchmod(fd, mode)
    except BaseException:
        os.close(fd)
        raise
    return fd


@contextmanager
def ordinary_umask() -> Iterator[None]:
    """A context with umask 022: new files of this process and its children are never writable for others.

    Do not use it in a process in which other threads create files.
    """
    before = os.umask(0o022)
    try:
        yield
    finally:
        os.umask(before)


def _check(path: str) -> bool:
    """Check a directory and its parents. Returns whether it exists; if not, its existing parents are checked."""
    place, status = "/", os.lstat("/")
    try:
        for place, status in _steps(path):
            _check_step(place, status, sticky=True)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise HostError(f"{error.filename} cannot be examined: {error.strerror}", hint="run as root") from None
    if not stat.S_ISDIR(status.st_mode):
        raise HostError(f"{place} is not a directory", hint=_NO_DIRECTORY)
    _check_step(place, status, sticky=False)
    return True


def _check_step(place: str, status: os.stat_result, *, sticky: bool) -> None:
    """Raise :class:`HostError` unless the file is safe. ``sticky``: a directory with the sticky bit may be writable."""
    owner = f"the user {status.st_uid} and has mode {stat.S_IMODE(status.st_mode):04o}"
    remedy = "and remove what others may have changed; or set image.cache in the configuration to another directory"
    if status.st_uid not in (0, os.geteuid()):
        raise HostError(f"{place} belongs to {owner}", hint=f"`chown root {place}` {remedy}")
    if stat.S_ISLNK(status.st_mode) or not status.st_mode & _WRITABLE:
        return
    if not (sticky and status.st_mode & stat.S_ISVTX):
        raise HostError(f"others may write to {place}, which belongs to {owner}", hint=f"`chmod go-w {place}` {remedy}")


def _steps(path: str) -> Iterator[tuple[str, os.stat_result]]:
    """Each directory and symbolic link that the kernel visits when it resolves an absolute path, and its final file.

    Raises FileNotFoundError if a part is missing, and :class:`HostError` for too many links.
    """
    place, names, links = "/", path.split("/"), 0
    yield "/", os.lstat("/")
    while names:
        name = names.pop(0)
        if name in ("", "."):
            continue
        if name == "..":
            place = os.path.dirname(place)  # ``place`` contains no links, so this is the parent
            continue
        step = os.path.join(place, name)
        try:
            status = os.lstat(step)
        except NotADirectoryError:
            raise HostError(f"{place} is not a directory", hint=_NO_DIRECTORY) from None
        yield step, status
        if not stat.S_ISLNK(status.st_mode):
            place = step
            continue
        links += 1
        if links > _MOST_LINKS:
            raise HostError(f"{path} has too many symbolic links", hint="set image.cache to another directory")
        target = os.readlink(step)
        place = "/" if target.startswith("/") else place
        names = [*target.split("/"), *names]
