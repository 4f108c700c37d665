"""Mount overlays of the host's directories. They are attached only in the share.

Layers are passed to the kernel by descriptors: names need no escapes, and cannot be replaced after they were checked.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from hawse.errors import ConfigError, HawseError, StateError
from hawse.host.mounts.kernel_views import kernel_view
from hawse.linux import mounts
from hawse.oci.guest.overlay import Overlay

#: How long the creation of one container may delay the others, and how often they check, in seconds.
_LOCK_SECONDS = 120.0
_LOCK_POLL = 0.02


@contextmanager
def alone(directory: str, name: str, *, seconds: float = _LOCK_SECONDS) -> Iterator[None]:
    """Hold the lock for mounting overlays of containers that join a sandbox; ``directory`` is the sandbox's.

    ``name`` is the id of the container. Raises :class:`StateError` if the sandbox was deleted, and, with the name of
    the other container, if that holds the lock for longer than ``seconds``.

    Without the lock, two containers that mount the same overlay at the same time would each find that the sandbox does
    not use it yet. The effect of two mounts with the same upper directory is undefined (Linux
    Documentation/filesystems/overlayfs.rst, "Sharing and copying layers"). The lock is released when this process ends.
    """
    try:
        lock = os.open(f"{directory}/overlays.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        sandbox = os.path.basename(directory)
        raise StateError(
            f"container not running: {sandbox} was deleted while {name} was to join it", hint="create another sandbox"
        ) from None
    try:
        _acquire(lock, name, seconds)
        os.ftruncate(lock, 0)
        os.pwrite(lock, name.encode(), 0)
        yield
    finally:
        os.close(lock)


def _acquire(lock: int, name: str, seconds: float) -> None:
    holder, deadline = "", time.monotonic() + seconds
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            before, holder = holder, os.pread(lock, 256, 0).decode(errors="replace")
        if holder != before:
            deadline = time.monotonic() + seconds
        elif time.monotonic() > deadline:
            raise StateError(
                f"container {name}: container {holder} of the same pod has been mounting overlays for {seconds:g} s",
                hint=f"wait for its creation, or end it with `hawse delete --force {holder}`",
            )
        time.sleep(_LOCK_POLL)  # a lock with a deadline cannot be waited for in any other way


def make(overlay: Overlay) -> int:
    """Mount an overlay; returns a descriptor. Raises :class:`ConfigError` naming a layer."""
    trees: list[int] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            # Layers get short names: their descriptor numbers in this directory. Only this thread changes its
            # directory.
            mounts.unshare_directory()
            os.chdir("/proc/self/fd")
            trees.append(_make(overlay))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="overlay")
    thread.start()
    thread.join()
    if not errors:
        return trees[0]
    if isinstance(errors[0], OSError):
        raise ConfigError(f"cannot mount {overlay.name}: {errors[0].strerror}", hint="see `dmesg` for the reason")
    raise errors[0]


def _make(overlay: Overlay) -> int:
    with ExitStack() as undo:
        lowers = ":".join(_open(path, undo) for path in overlay.lowers)
        if len(lowers) > mounts.LONGEST_VALUE:
            raise ConfigError(
                f"cannot mount {overlay.name}: {len(overlay.lowers)} lower directories exceed the kernel's limit",
                hint="use fewer layers",
            )
        options = [("lowerdir", lowers)]
        if overlay.upper:
            options += [("upperdir", _open(overlay.upper, undo)), ("workdir", _open(overlay.work, undo))]
        return mounts.new_file_system("overlay", [*options, *overlay.options])


def _open(path: str, undo: ExitStack) -> str:
    """Open a directory; returns the number of its descriptor."""
    try:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _refusal(path, (error.strerror or "").lower()) from None
    undo.callback(os.close, fd)
    if kind := kernel_view(fd):
        raise _refusal(path, f"it is on a file system of the host kernel, {kind}")
    return str(fd)


def _refusal(path: str, reason: str) -> HawseError:
    return ConfigError(f"cannot mount an overlay with {path[:200]}: {reason}", hint="check the mount's options")
