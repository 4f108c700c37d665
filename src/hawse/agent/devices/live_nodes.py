"""Device nodes and files in a container that runs: made and removed beside it, in its own file systems.

The container's root is hostile ground: every directory on the way may be replaced by a link at any moment, and
/proc/<pid>/root resolves an absolute link from the agent's own root. So each step is taken from an open directory and
none follows a link (openat(2), O_NOFOLLOW; O_EXCL does not follow one either). Python sets O_CLOEXEC (PEP 446).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress

from hawse.errors import StateError

_DIRECTORY = os.O_DIRECTORY | os.O_NOFOLLOW


def make_node(root: str, path: str, numbers: tuple[int, int], *, mode: int, uid: int, gid: int) -> None:
    """A character device at an absolute path below ``root``. One that is there already is left as it is.

    Raises :class:`StateError` where something else is in the way.
    """
    device = os.makedev(*numbers)
    parent = open_parent(root, path, make=True)
    try:
        name = os.path.basename(path)
        try:
            os.mknod(name, stat.S_IFCHR | 0o600, device, dir_fd=parent)
        except FileExistsError:
            if not _is_node(parent, name, device):
                raise StateError(f"{path}: something else is there in the container") from None
            return
        # By the open node itself: its name may be another's by now.
        node = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=parent)
        try:
            if os.fstat(node).st_rdev == device:
                os.chown(f"/proc/self/fd/{node}", uid, gid)
                os.chmod(f"/proc/self/fd/{node}", mode)
        finally:
            os.close(node)
    except OSError as error:
        raise StateError(f"{path}: the node cannot be made in the container: {error.strerror}") from None
    finally:
        os.close(parent)


def bind_node(root: str, path: str, numbers: tuple[int, int], bind: Callable[[int], None]) -> None:
    """As :func:`make_node`, where no node may be made: ``bind`` mounts one at the empty file of a descriptor.

    :func:`remove_node` takes it away again: the kernel ends a mount of another namespace whose place is unlinked
    (Linux fs/namespace.c, __detach_mounts()).
    """
    parent = open_parent(root, path, make=True)
    try:
        name = os.path.basename(path)
        try:
            place = os.open(name, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=parent)
        except FileExistsError:
            if not _is_node(parent, name, os.makedev(*numbers)):
                raise StateError(f"{path}: something else is there in the container") from None
            return
        try:
            bind(place)
        except OSError:
            os.unlink(name, dir_fd=parent)
            raise
        finally:
            os.close(place)
    except OSError as error:
        raise StateError(f"{path}: the node cannot be bound in the container: {error.strerror}") from None
    finally:
        os.close(parent)


def remove_node(root: str, path: str, numbers: tuple[int, int]) -> None:
    """Take the node away, if it is still there and still that device's."""
    with suppress(StateError, OSError):
        parent = open_parent(root, path, make=False)
        try:
            name = os.path.basename(path)
            if _is_node(parent, name, os.makedev(*numbers)):
                os.unlink(name, dir_fd=parent)
        finally:
            os.close(parent)


def write_file(root: str, path: str, text: str) -> None:
    """Replace a file of ours at an absolute path below ``root``. Raises :class:`StateError`."""
    parent = open_parent(root, path, make=True)
    try:
        name = os.path.basename(path)
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=parent)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with open(os.open(name, flags, 0o644, dir_fd=parent), "w") as file:
            file.write(text)
    except OSError as error:
        raise StateError(f"{path}: the file cannot be made in the container: {error.strerror}") from None
    finally:
        os.close(parent)


def open_parent(root: str, path: str, *, make: bool) -> int:
    """A descriptor of the directory of an absolute path below ``root``. Raises :class:`StateError`."""
    directory = os.open(root, os.O_RDONLY)
    for part in os.path.dirname(path).split("/"):
        if not part:
            continue
        try:
            if make:
                with suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=directory)
            inner = os.open(part, _DIRECTORY, dir_fd=directory)
        except OSError as error:
            raise StateError(f"{path}: {part} cannot be entered in the container: {error.strerror}") from None
        finally:
            os.close(directory)
        directory = inner
    return directory


def _is_node(parent: int, name: str, device: int) -> bool:
    found = os.stat(name, dir_fd=parent, follow_symlinks=False)
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == device
