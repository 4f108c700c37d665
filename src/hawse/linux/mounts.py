"""Mount operations: mount(2), open_tree(2), mount_setattr(2), move_mount(2), fsmount(2), openat2(2).

Standard library only. Every function raises OSError whose ``filename`` is the path that the operation concerns.
"""

from __future__ import annotations

import ctypes
import os
import struct

from hawse.linux.libc import CLONE_FS, CLONE_NEWNS, check, libc

TYPE_CHECKING = False  # typing's import would cost a proxy a tenth of its time
if TYPE_CHECKING:
    from collections.abc import Sequence

RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT, BIND, MOVE, REC = 1, 2, 4, 8, 32, 4096, 8192, 16384
PRIVATE, SLAVE, SHARED = 1 << 18, 1 << 19, 1 << 20
#: Attributes of a mount (mount_setattr(2)).
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV, ATTR_NOEXEC = 1, 2, 4, 8
_ATTR_IDMAP = 0x100000
_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_AT_FDCWD, _AT_SYMLINK_NOFOLLOW, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x100, 0x1000, 0x8000
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH, _MOVE_MOUNT_T_EMPTY_PATH = 4, 0x40
_RESOLVE_NO_MAGICLINKS, _RESOLVE_NO_SYMLINKS, _RESOLVE_BENEATH = 2, 4, 8  # include/uapi/linux/openat2.h
#: System call numbers, the same on every architecture (Linux include/uapi/asm-generic/unistd.h,
#: arch/x86/entry/syscalls/syscall_64.tbl).
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_OPENAT2, _SYS_MOUNT_SETATTR = 428, 429, 437, 442
_SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 430, 431, 432
_FSOPEN_CLOEXEC, _FSCONFIG_CMD_CREATE, _FSMOUNT_CLOEXEC = 1, 6, 1
_FSCONFIG_SET_FLAG, _FSCONFIG_SET_STRING = 0, 1
#: The longest value of a file system's option, in bytes: 256 with the NUL (Linux fs/fsopen.c, fsconfig()).
LONGEST_VALUE = 255
#: The number of pivot_root(2) depends on the architecture.
_SYS_PIVOT_ROOT = {"x86_64": 155}.get(os.uname().machine, 41)


def unshare(propagation: int) -> None:
    """Enter a copy of the mount namespace. With SLAVE later mounts of the host appear in it; with PRIVATE they do not.

    The process must be single-threaded.
    """
    check(libc.unshare(CLONE_NEWNS), "unshare")
    mount("none", "/", "", REC | propagation)


def mount(source: str, target: str, kind: str, flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    options = data.encode() or None
    arguments = os.fsencode(source), os.fsencode(target), kind.encode() or None
    check(libc.mount(*arguments, ctypes.c_ulong(flags), options), target)


def unmount(path: str) -> None:
    """Detach the mount at a path, and all mounts below it. A symbolic link as the last component is not followed."""
    check(libc.umount2(os.fsencode(path), _DETACH | _UMOUNT_NOFOLLOW), path)


def open_tree(path: str, *, recursive: bool = False) -> int:
    """Copy the mount at ``path``, with ``recursive`` also the mounts below it. Returns a file descriptor of the copy,
    which is not attached anywhere yet."""
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    return check(libc.syscall(_SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(path), flags), path)


def set_attributes(
    tree: int, attributes: int, *, recursive: bool, propagation: int = 0, path: str = "", cleared: int = 0
) -> None:
    """Set attributes of the mount ``tree``, or of the mount at ``path`` below it (since Linux 5.12).

    ``cleared`` are removed first; the other attributes remain unchanged. ``recursive``: also on the mounts below.
    Raises EINVAL if the file is not the root of a mount.
    """
    request = struct.pack("QQQQ", attributes, cleared, propagation, 0)
    flags = (_AT_SYMLINK_NOFOLLOW if path else _AT_EMPTY_PATH) | (_AT_RECURSIVE if recursive else 0)
    check(libc.syscall(_SYS_MOUNT_SETATTR, tree, os.fsencode(path), flags, request, len(request)), path)


def map_ids(tree: int, namespace: int, *, recursive: bool) -> None:
    """Make an ID-mapped mount (mount_setattr(2), MOUNT_ATTR_IDMAP) of a mount that has not been attached yet.

    Owners are mapped by the user namespace: its inside ids are those in the file system, its outside ids those that the
    mount shows. EINVAL: the file system does not support it.
    """
    request = struct.pack("QQQQ", _ATTR_IDMAP, 0, 0, namespace)
    flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    check(libc.syscall(_SYS_MOUNT_SETATTR, tree, b"", flags, request, len(request)), "")


def attach(tree: int, place: int, path: str) -> None:
    """Attach the mount ``tree`` at the directory or file ``place``, a descriptor; ``path`` is its name in errors."""
    flags = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH
    check(libc.syscall(_SYS_MOVE_MOUNT, tree, b"", place, b"", flags), path)


def attach_at(tree: int, path: str) -> None:
    """Attach the mount ``tree`` at a path. Symbolic links are followed, within the root of the calling process."""
    arguments = tree, b"", _AT_FDCWD, os.fsencode(path)
    check(libc.syscall(_SYS_MOVE_MOUNT, *arguments, _MOVE_MOUNT_F_EMPTY_PATH), path)


def change_root(directory: str) -> None:
    """Make a mounted directory the root of this process's mount namespace, and detach the old root."""
    os.chdir(directory)
    if libc.syscall(_SYS_PIVOT_ROOT, b".", b".") == 0:
        # The old root is now mounted on top of the new one (pivot_root(2), NOTES).
        check(libc.umount2(b".", _DETACH), directory)
    else:  # the host runs from its initial ramfs, which cannot be unmounted (pivot_root(2), EINVAL)
        mount(".", "/", "", MOVE)
        os.chroot(".")
    os.chdir("/")


def bind(source: str, target: str, attributes: int) -> None:
    """Bind-mount ``source`` at ``target``. The mount has these attributes before it becomes visible.

    The caller must ensure that no other user can change the target's path.
    """
    tree = open_tree(source)
    try:
        set_attributes(tree, attributes, recursive=False, propagation=PRIVATE)
        place = os.open(target, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            attach(tree, place, target)
        finally:
            os.close(place)
    finally:
        os.close(tree)


def open_beneath(directory: int, path: str, flags: int = os.O_PATH) -> int:
    """A descriptor of the file at ``path`` below a directory. Raises OSError if the path has symbolic links."""
    resolve = _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, 0, resolve)
    return check(libc.syscall(_SYS_OPENAT2, directory, os.fsencode(path), how, len(how)), path)


def private_directory() -> int:
    """A file descriptor of an empty tmpfs that is not mounted anywhere; device nodes in it are usable.

    The kernel frees it when the descriptor is closed.
    """
    return new_file_system("tmpfs", ())


def new_file_system(kind: str, options: Sequence[tuple[str, str]]) -> int:
    """A file descriptor of a new file system that is not mounted anywhere.

    ``options``: name and value, "" for a flag; a value has at most :data:`LONGEST_VALUE` bytes. Raises OSError with the
    kernel's own message, where it has one (since Linux 6.5 for some file systems).
    """
    context = check(libc.syscall(_SYS_FSOPEN, kind.encode(), _FSOPEN_CLOEXEC), kind)
    try:
        for name, value in options:
            command = _FSCONFIG_SET_STRING if value else _FSCONFIG_SET_FLAG
            argument = os.fsencode(value) if value else None
            check(libc.syscall(_SYS_FSCONFIG, context, command, name.encode(), argument, 0), name)
        check(libc.syscall(_SYS_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0), kind)
        return check(libc.syscall(_SYS_FSMOUNT, context, _FSMOUNT_CLOEXEC, 0), kind)
    except OSError as error:
        try:
            log = os.read(context, 4096).decode(errors="replace")
        except OSError:  # ENODATA
            log = ""
        words = "".join(c for c in log if c.isprintable()).removeprefix("e ")
        raise OSError(error.errno, f"{error.strerror}: {words}" if words else error.strerror, error.filename) from None
    finally:
        os.close(context)


def unshare_directory() -> None:
    """Give the calling thread a private working directory (CLONE_FS)."""
    check(libc.unshare(CLONE_FS), "unshare")


def file_system(fd: int) -> int:
    """The type of the file system as its magic number (statfs(2), f_type)."""
    answer = ctypes.create_string_buffer(256)  # more than any architecture's struct statfs
    check(libc.fstatfs(fd, answer), "")
    return ctypes.c_long.from_buffer(answer).value
