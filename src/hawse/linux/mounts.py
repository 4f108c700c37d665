"""Mounts by descriptors: mount(2), open_tree(2), mount_setattr(2), move_mount(2), fsmount(2), openat2(2).

Standard library only.
Every function raises OSError with the path that it is about.
"""

from __future__ import annotations

import ctypes
import os
import struct

TYPE_CHECKING = False  # typing's import would cost a proxy a tenth of its time
if TYPE_CHECKING:
    from collections.abc import Sequence

RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT, BIND, MOVE, REC = 1, 2, 4, 8, 32, 4096, 8192, 16384
PRIVATE, SLAVE, SHARED = 1 << 18, 1 << 19, 1 << 20
#: Attributes of a mount (mount_setattr(2)).
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV, ATTR_NOEXEC = 1, 2, 4, 8
_ATTR_IDMAP = 0x100000
_CLONE_NEWNS = 0x20000
_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_AT_FDCWD, _AT_SYMLINK_NOFOLLOW, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x100, 0x1000, 0x8000
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH, _MOVE_MOUNT_T_EMPTY_PATH = 4, 0x40
_RESOLVE_NO_SYMLINKS, _RESOLVE_BENEATH = 4, 8
#: The same on every architecture (Linux include/uapi/asm-generic/unistd.h, arch/x86/entry/syscalls/syscall_64.tbl).
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_OPENAT2, _SYS_MOUNT_SETATTR = 428, 429, 437, 442
_SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 430, 431, 432
_FSOPEN_CLOEXEC, _FSCONFIG_CMD_CREATE, _FSMOUNT_CLOEXEC = 1, 6, 1
_FSCONFIG_SET_FLAG, _FSCONFIG_SET_STRING = 0, 1
_CLONE_FS = 0x200
#: Linux fs/fsopen.c, fsconfig(): 256 with the NUL.
LONGEST_VALUE = 255
#: This one is not.
_SYS_PIVOT_ROOT = {"x86_64": 155}.get(os.uname().machine, 41)
_libc = ctypes.CDLL(None, use_errno=True)


def unshare(propagation: int) -> None:
    """Enter a copy of the mount namespace. Later mounts of the host appear in it with SLAVE, and not with PRIVATE.

    The process must have one thread.
    """
    check(_libc.unshare(_CLONE_NEWNS), "unshare")
    mount("none", "/", "", REC | propagation)


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """mount(2)."""
    options = data.encode() or None
    words = os.fsencode(source), os.fsencode(target), kind.encode() or None
    check(_libc.mount(*words, ctypes.c_ulong(flags), options), target)


def unmount(path: str) -> None:
    """Detach the mount at a path, with what is mounted below it; a link at its end is not followed."""
    check(_libc.umount2(os.fsencode(path), _DETACH | _UMOUNT_NOFOLLOW), path)


def open_tree(path: str, *, recursive: bool = False) -> int:
    """A descriptor of a copy of the mount at ``path``, which is attached nowhere; ``recursive``: of those below too."""
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    return check(_libc.syscall(_SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(path), flags), path)


def set_attributes(tree: int, attributes: int, *, recursive: bool, propagation: int = 0, path: str = "") -> None:
    """Set attributes of a mount, by its descriptor and a path below it; others stay as they are (since Linux 5.12)."""
    request = struct.pack("QQQQ", attributes, 0, propagation, 0)
    flags = (_AT_SYMLINK_NOFOLLOW if path else _AT_EMPTY_PATH) | (_AT_RECURSIVE if recursive else 0)
    check(_libc.syscall(_SYS_MOUNT_SETATTR, tree, os.fsencode(path), flags, request, len(request)), path)


def map_ids(tree: int, namespace: int, *, recursive: bool) -> None:
    """Have a mount that was attached nowhere yet show owners as a user namespace maps them: ids inside are those of the
    file system, ids outside those of the mount. EINVAL: its file system cannot (mount_setattr(2), MOUNT_ATTR_IDMAP)."""
    request = struct.pack("QQQQ", _ATTR_IDMAP, 0, 0, namespace)
    flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    check(_libc.syscall(_SYS_MOUNT_SETATTR, tree, b"", flags, request, len(request)), "")


def attach(tree: int, place: int, path: str) -> None:
    """Attach the mount of a descriptor at the place of another; ``path`` names it in errors."""
    flags = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH
    check(_libc.syscall(_SYS_MOVE_MOUNT, tree, b"", place, b"", flags), path)


def attach_at(tree: int, path: str) -> None:
    """Attach the mount of a descriptor at a path, whose links are followed: within the root of the calling process."""
    words = tree, b"", _AT_FDCWD, os.fsencode(path)
    check(_libc.syscall(_SYS_MOVE_MOUNT, *words, _MOVE_MOUNT_F_EMPTY_PATH), path)


def change_root(directory: str) -> None:
    """Make a mounted directory the root of this process's mount namespace, and detach the old root."""
    os.chdir(directory)
    if _libc.syscall(_SYS_PIVOT_ROOT, b".", b".") == 0:
        # The old root lies over the new one now (pivot_root(2), NOTES).
        check(_libc.umount2(b".", _DETACH), directory)
    else:  # the host runs from its initial RAM disk, which cannot be taken away (pivot_root(2), EINVAL)
        mount(".", "/", "", MOVE)
        os.chroot(".")
    os.chdir("/")


def bind(source: str, target: str, attributes: int) -> None:
    """Bind the mount at ``source`` to ``target``, with these attributes from the first moment on.

    Only the caller may be able to change the target's path.
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


def open_beneath(directory: int, path: str) -> int:
    """An O_PATH descriptor of what is below a directory at a path without links."""
    how = struct.pack("QQQ", os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS)
    return check(_libc.syscall(_SYS_OPENAT2, directory, os.fsencode(path), how, len(how)), path)


def private_directory() -> int:
    """A descriptor of an empty tmpfs that is mounted nowhere and takes device nodes. It ends with the descriptor."""
    return new_file_system("tmpfs", ())


def new_file_system(kind: str, options: Sequence[tuple[str, str]]) -> int:
    """A descriptor of a file system that is mounted nowhere. ``options``: name and value, "" for a flag; a value has at
    most :data:`LONGEST_VALUE` bytes. What the kernel says of a refusal, since Linux 6.5 for some, is in the error."""
    context = check(_libc.syscall(_SYS_FSOPEN, kind.encode(), _FSOPEN_CLOEXEC), kind)
    try:
        for name, value in options:
            command = _FSCONFIG_SET_STRING if value else _FSCONFIG_SET_FLAG
            given = os.fsencode(value) if value else None
            check(_libc.syscall(_SYS_FSCONFIG, context, command, name.encode(), given, 0), name)
        check(_libc.syscall(_SYS_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0), kind)
        return check(_libc.syscall(_SYS_FSMOUNT, context, _FSMOUNT_CLOEXEC, 0), kind)
    except OSError as error:
        try:
            said = os.read(context, 4096).decode(errors="replace")
        except OSError:  # ENODATA
            said = ""
        words = "".join(c for c in said if c.isprintable()).removeprefix("e ")
        raise OSError(error.errno, f"{error.strerror}: {words}" if words else error.strerror, error.filename) from None
    finally:
        os.close(context)


def unshare_directory() -> None:
    """Give the calling thread a working directory of its own."""
    check(_libc.unshare(_CLONE_FS), "unshare")


def file_system(fd: int) -> int:
    """The type of the file system, by its number (statfs(2), f_type)."""
    answer = ctypes.create_string_buffer(256)  # more than any architecture's struct statfs
    check(_libc.fstatfs(fd, answer), "")
    return ctypes.c_long.from_buffer(answer).value


def check(result: int, path: str) -> int:
    """The result of a system call. Raises OSError for -1."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result
