"""The system calls that Python lacks. All of the guest's ctypes is here.

Memory safety: every pointer handed to the kernel is a NUL-terminated ``bytes`` that lives for the length of the call.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import threading
from contextlib import contextmanager

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_MOVE, MS_REC = 2, 4, 8, 4096, 8192, 16384

# arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h
_FINIT_MODULE = {"x86_64": 313, "aarch64": 273}.get(os.uname().machine, -1)
_MODULE_INIT_COMPRESSED_FILE = 4  # include/uapi/linux/module.h
_PR_SET_CHILD_SUBREAPER = 36
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS, _RESOLVE_NO_SYMLINKS, _RESOLVE_BENEATH = 2, 4, 8  # include/uapi/linux/openat2.h
_RNDADDENTROPY, _RNDRESEEDCRNG = 0x40085203, 0x5207  # include/uapi/linux/random.h
# include/uapi/asm-generic/unistd.h, the same on every architecture; include/uapi/linux/mount.h, sched.h
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_MOUNT_SETATTR = 428, 429, 442
_AT_EMPTY_PATH = 0x1000
_AT_FDCWD, _OPEN_TREE_CLONE = -100, 1
_MOVE_MOUNT_F_EMPTY_PATH, _MOVE_MOUNT_T_EMPTY_PATH = 4, 0x40
_CLONE_FS, _CLONE_NEWNS = 0x200, 0x20000
_RB_POWER_OFF = 0x4321FEDC
_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: str, kind: str, flags: int = 0, data: str = "") -> None:
    """mount(2); raises OSError naming the target."""
    if _libc.mount(
        os.fsencode(source), os.fsencode(target), kind.encode() or None, ctypes.c_ulong(flags), data.encode() or None
    ):
        _fail(target)


def unmount(path: str) -> None:
    """umount2(2): detach the mount at a path, with what is mounted below it; raises OSError naming the path."""
    if _libc.umount2(os.fsencode(path), _MNT_DETACH | _UMOUNT_NOFOLLOW):
        _fail(path)


def open_beneath(directory: int, path: str, flags: int = os.O_PATH) -> int:
    """openat2(2): a descriptor of what is below a directory at a path without links; raises OSError."""
    resolve = _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, 0, resolve)
    fd: int = _libc.syscall(
        ctypes.c_long(_OPENAT2), ctypes.c_int(directory), os.fsencode(path), how, ctypes.c_size_t(len(how))
    )
    if fd < 0:
        _fail(path)
    return fd


def bind_in(namespace: int, source: str, place: int) -> None:
    """Bind ``source`` to the file of the descriptor ``place``, in the mount namespace of another descriptor.

    Raises OSError.
    """
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC
    tree = _check(_libc.syscall(_SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(source), flags), source)

    def move() -> None:
        empty = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH
        _check(_libc.syscall(_SYS_MOVE_MOUNT, tree, b"", place, b"", empty), source)

    try:
        in_mounts(namespace, move)
    finally:
        os.close(tree)


def in_mounts(namespace: int, act: Callable[[], None]) -> None:
    """Call ``act`` in the mount namespace of a descriptor, whose root directory it then has. Raises what it raises.

    A thread enters the namespace, and ends there: it has a root directory and a working directory of its own from then
    on, which setns(2) demands.
    """
    failures: list[BaseException] = []

    def enter() -> None:
        try:
            _check(_libc.unshare(_CLONE_FS), "unshare")
            _check(_libc.setns(namespace, _CLONE_NEWNS), "setns")
            act()
        except BaseException as error:  # the caller's to handle
            failures.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def set_mount_attributes(mount: int, attributes: int, cleared: int = 0) -> None:
    """mount_setattr(2): set attributes of the mount whose root a descriptor is of; raises OSError, EINVAL for another
    file."""
    request = struct.pack("QQQQ", attributes, cleared, 0, 0)
    _check(_libc.syscall(_SYS_MOUNT_SETATTR, mount, b"", _AT_EMPTY_PATH, request, len(request)), "mount")


@contextmanager
def file_owner(uid: int, gid: int) -> Iterator[None]:
    """Files that the calling thread makes meanwhile have this owner, and it has its rights alone (setfsuid(2))."""
    before = _libc.setfsuid(-1), _libc.setfsgid(-1)
    _libc.setfsgid(ctypes.c_uint(gid))
    _libc.setfsuid(ctypes.c_uint(uid))
    try:
        yield
    finally:
        _libc.setfsuid(before[0])
        _libc.setfsgid(before[1])


def load_module(path: str) -> None:
    """finit_module(2): load a kernel module from its file; raises OSError, EEXIST when it is there already."""
    flags = 0 if path.endswith(".ko") else _MODULE_INIT_COMPRESSED_FILE
    fd = os.open(path, os.O_RDONLY)
    try:
        if _libc.syscall(ctypes.c_long(_FINIT_MODULE), ctypes.c_int(fd), b"", ctypes.c_int(flags)):
            _fail(path)
    finally:
        os.close(fd)


def become_subreaper() -> None:
    """Orphans of this process's descendants become its children, as they do of PID 1."""
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        _fail("prctl")


def reseed(entropy: bytes) -> None:
    """Add to the kernel's random number generator and have it used by every CPU from now on (random(4)).

    The first ioctl credits the entropy and mixes it in; the second makes the next read of any CPU draw a new key from
    the pool (drivers/char/random.c, crng_reseed()).
    """
    request = struct.pack("ii", len(entropy) * 8, len(entropy)) + entropy
    with open("/dev/random", "r+b", buffering=0) as device:
        fcntl.ioctl(device, _RNDADDENTROPY, request)
        fcntl.ioctl(device, _RNDRESEEDCRNG)


def power_off() -> None:
    """End the virtual machine at once. What must be on the disk is synced by the caller."""
    _libc.reboot(ctypes.c_int(_RB_POWER_OFF))


def _check(result: int, what: str) -> int:
    if result < 0:
        _fail(what)
    return result


def _fail(what: str) -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number), what)
