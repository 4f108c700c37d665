"""System calls that Python lacks and only the guest uses. :mod:`hawse.linux` has those that the host uses, too."""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import threading
from contextlib import contextmanager

from hawse.linux import mounts
from hawse.linux.libc import CLONE_NEWNS, check, failure, libc

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h
_FINIT_MODULE = {"x86_64": 313, "aarch64": 273}.get(os.uname().machine, -1)
_MODULE_INIT_COMPRESSED_FILE = 4  # include/uapi/linux/module.h
_PR_SET_CHILD_SUBREAPER = 36
_RNDADDENTROPY, _RNDRESEEDCRNG = 0x40085203, 0x5207  # include/uapi/linux/random.h
_RB_POWER_OFF = 0x4321FEDC


def bind_in(namespace: int, source: str, target: int) -> None:
    """Bind ``source`` to the file of the descriptor ``target``, in the mount namespace of another descriptor.

    Raises OSError.
    """
    tree = mounts.open_tree(source)
    try:
        in_mounts(namespace, lambda: mounts.attach(tree, target, source))
    finally:
        os.close(tree)


def in_mounts(namespace: int, act: Callable[[], None]) -> None:
    """Call ``act`` in the mount namespace of a descriptor, with that namespace's root directory.

    A new thread enters the namespace, and then ends. It first unshares its root and working directory from the other
    threads, as setns(2) requires. Exceptions of ``act`` are raised here.
    """
    failures: list[BaseException] = []

    def enter() -> None:
        try:
            mounts.unshare_directory()
            check(libc.setns(namespace, CLONE_NEWNS), "setns")
            act()
        except BaseException as error:  # raised again in the calling thread
            failures.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


@contextmanager
def file_owner(uid: int, gid: int) -> Iterator[None]:
    """Create files as this owner in the calling thread, and access files only with its permissions (setfsuid(2))."""
    before = libc.setfsuid(-1), libc.setfsgid(-1)
    libc.setfsgid(ctypes.c_uint(gid))
    libc.setfsuid(ctypes.c_uint(uid))
    try:
        yield
    finally:
        libc.setfsuid(before[0])
        libc.setfsgid(before[1])


def load_module(path: str) -> None:
    """Load a kernel module from its file (finit_module(2)). Raises OSError; EEXIST if the module is already loaded."""
    flags = 0 if path.endswith(".ko") else _MODULE_INIT_COMPRESSED_FILE
    fd = os.open(path, os.O_RDONLY)
    try:
        if libc.syscall(ctypes.c_long(_FINIT_MODULE), ctypes.c_int(fd), b"", ctypes.c_int(flags)):
            raise failure(path)
    finally:
        os.close(fd)


def become_subreaper() -> None:
    """Make orphans among this process's descendants its children, as with PID 1 (PR_SET_CHILD_SUBREAPER)."""
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise failure("prctl")


def reseed(entropy: bytes) -> None:
    """Add entropy to the kernel's random number generator, and make all CPUs use it at once (random(4)).

    The first ioctl credits the entropy and mixes it in; the second makes the next read of any CPU draw a new key from
    the pool (drivers/char/random.c, crng_reseed()).
    """
    request = struct.pack("ii", len(entropy) * 8, len(entropy)) + entropy
    with open("/dev/random", "r+b", buffering=0) as device:
        fcntl.ioctl(device, _RNDADDENTROPY, request)
        fcntl.ioctl(device, _RNDRESEEDCRNG)


def power_off() -> None:
    """Power off the VM at once. The caller has to sync file systems first."""
    libc.reboot(ctypes.c_int(_RB_POWER_OFF))
