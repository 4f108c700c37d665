"""Create and remove device nodes and files in the file systems of a running container, from outside of it.

The container's file systems are hostile: every directory on a path may be replaced by a symbolic link at any moment,
and /proc/<pid>/root resolves an absolute link from the agent's root. So each step starts from an open directory and
follows no link (openat(2), O_NOFOLLOW; O_EXCL does not follow a link either). Python sets O_CLOEXEC (PEP 446).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress

from hawse.errors import StateError

_DIRECTORY = os.O_DIRECTORY | os.O_NOFOLLOW


def make_node(root: str, path: str, numbers: tuple[int, int], *, mode: int, uid: int, gid: int) -> None:
    """Create a character device at an absolute path below ``root``. An existing node of the device is not changed.

    Raises :class:`StateError` if another file exists at the path.
    """
    device = os.makedev(*numbers)
    parent = open_parent(root, path, make=True)
    try:
        name = os.path.basename(path)
        try:
            os.mknod(name, stat.S_IFCHR | 0o600, device, dir_fd=parent)
        except FileExistsError:
            if not _is_node(parent, name, device):
                raise StateError(f"{path}: another file exists at this path in the container") from None
            return
        # Use the open node: its name may refer to another file by now.
        node = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=parent)
        try:
            if os.fstat(node).st_rdev == device:
                os.chown(f"/proc/self/fd/{node}", uid, gid)
                os.chmod(f"/proc/self/fd/{node}", mode)
        finally:
            os.close(node)
    except OSError as error:
        raise StateError(f"{path}: the node cannot be created in the container: {error.strerror}") from None
    finally:
        os.close(parent)


def bind_node(root: str, path: str, numbers: tuple[int, int], bind: Callable[[int], None]) -> None:
    """Like :func:`make_node`, for a container in which nodes cannot be created.

    ``bind`` mounts a node on the empty file of a descriptor. :func:`remove_node` also removes this node: the kernel
    detaches a mount of another namespace when its mount point is unlinked (Linux fs/namespace.c, __detach_mounts()).
    """
    parent = open_parent(root, path, make=True)
    try:
        name = os.path.basename(path)
        try:
            target = os.open(name, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=parent)
        except FileExistsError:
            if not _is_node(parent, name, os.makedev(*numbers)):
                raise StateError(f"{path}: another file exists at this path in the container") from None
            return
        try:
            bind(target)
        except OSError:
            os.unlink(name, dir_fd=parent)
            raise
        finally:
            os.close(target)
    except OSError as error:
        raise StateError(f"{path}: the node cannot be bound in the container: {error.strerror}") from None
    finally:
        os.close(parent)


def remove_node(root: str, path: str, numbers: tuple[int, int]) -> None:
    """Remove the node, if it exists and is still a node of that device."""
    with suppress(StateError, OSError):
        parent = open_parent(root, path, make=False)
        try:
            name = os.path.basename(path)
            if _is_node(parent, name, os.makedev(*numbers)):
                os.unlink(name, dir_fd=parent)
        finally:
            os.close(parent)


def write_file(root: str, path: str, text: str) -> None:
    """Replace a file of hawse at an absolute path below ``root``. Raises :class:`StateError`."""
    parent = open_parent(root, path, make=True)
    try:
        name = os.path.basename(path)
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=parent)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with open(os.open(name, flags, 0o644, dir_fd=parent), "w") as file:
            file.write(text)
    except OSError as error:
        raise StateError(f"{path}: the file cannot be created in the container: {error.strerror}") from None
    finally:
        os.close(parent)


def open_parent(root: str, path: str, *, make: bool) -> int:
    """Open the parent directory of an absolute path below ``root``; ``make`` creates it. Raises StateError."""
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
            problem = f"the directory {part} cannot be opened"
            raise StateError(f"{path}: {problem}: {error.strerror}") from None
        finally:
            os.close(directory)
        directory = inner
    return directory


def _is_node(parent: int, name: str, device: int) -> bool:
    status = os.stat(name, dir_fd=parent, follow_symlinks=False)
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == device
