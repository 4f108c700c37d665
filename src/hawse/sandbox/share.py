"""The directory that the guest sees: bind mounts in a mount namespace of the monitor's own.

The namespace is the undo: it ends with the monitor and its children, whatever ends them, and its mounts with it.
The host's own mount table never shows one of them. All ctypes of the host side is here.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence

from hawse.errors import ConfigError, HostError
from hawse.sandbox.plan import Share

_CLONE_NEWNS = 0x20000
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC = 1, 32, 4096, 16384
_MS_PRIVATE, _MS_SLAVE, _MS_SHARED = 1 << 18, 1 << 19, 1 << 20
_MNT_DETACH = 2
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC, _MOVE_MOUNT_F_EMPTY_PATH = 1, os.O_CLOEXEC, 4
#: The same on every architecture (Linux include/uapi/asm-generic/unistd.h, arch/x86/entry/syscalls/syscall_64.tbl).
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_PIDFD_GETFD = 428, 429, 438
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def enter_private_namespace() -> None:
    """From here on mounts of this process stay its own; mounts that the host makes later still arrive.

    To be called while the process has one thread. Raises :class:`HostError` where it is not permitted.
    """
    if _libc.unshare(_CLONE_NEWNS):
        raise HostError(f"cannot make a mount namespace: {_reason()}", hint="hawse needs root, with CAP_SYS_ADMIN")
    _mount("none", "/", _MS_REC | _MS_SLAVE)


def prepare(directory: str) -> None:
    """Make the directory one whose later mounts virtiofsd gets too, in its own namespace: it makes its mounts slaves of
    ours (QEMU 7.2 tools/virtiofsd/passthrough_ll.c, setup_namespaces()). Raises OSError."""
    os.makedirs(directory, mode=0o755, exist_ok=True)
    _mount(directory, directory, _MS_BIND)
    _mount("none", directory, _MS_SHARED)


def populate(shares: Sequence[Share], directory: str) -> None:
    """Bind every share below ``directory``. Raises :class:`ConfigError` naming a source that cannot be bound."""

    def bind(index: int, target: str) -> None:
        _mount(shares[index].source, target, _MS_BIND | (_MS_REC if shares[index].recursive else 0))

    _place(shares, directory, bind)


def open_trees(shares: Sequence[Share]) -> list[int]:
    """Descriptors of what is to be shared, as this process sees it: for :func:`attach` in another mount namespace, to
    which mounts made after it may never come. Raises :class:`ConfigError` as :func:`populate`."""
    trees: list[int] = []
    for share in shares:
        flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | (_AT_RECURSIVE if share.recursive else 0)
        fd = _libc.syscall(_SYS_OPEN_TREE, _AT_FDCWD, share.source.encode(), flags)
        if fd < 0:
            reason = _reason()
            for tree in trees:
                os.close(tree)
            raise ConfigError(f"cannot share {share.source} with the guest: {reason}")
        trees.append(fd)
    return trees


def attach(shares: Sequence[Share], trees: Sequence[int], directory: str) -> None:
    """As :func:`populate`, from descriptors of :func:`open_trees`."""

    def move(index: int, target: str) -> None:
        # move_mount(2): a clone of a tree may be attached in any namespace.
        if _libc.syscall(_SYS_MOVE_MOUNT, trees[index], b"", _AT_FDCWD, target.encode(), _MOVE_MOUNT_F_EMPTY_PATH):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), target)
        _mount("none", target, _MS_SLAVE | _MS_REC)

    _place(shares, directory, move)


def unmount(directory: str) -> None:
    """Undo :func:`attach`, as far as it came."""
    for name in os.listdir(directory) if os.path.isdir(directory) else ():
        target = f"{directory}/{name}"
        _libc.umount2(target.encode(), _MNT_DETACH)
        try:
            os.rmdir(target) if os.path.isdir(target) else os.unlink(target)
        except OSError:
            continue  # something is mounted there still: it ends with the namespace
    if os.path.isdir(directory) and not os.listdir(directory):
        os.rmdir(directory)


def take_descriptors(pid: int, numbers: Sequence[int]) -> list[int]:
    """Descriptors of another process's, as our own (pidfd_getfd(2)). Raises OSError, with none taken."""
    taken: list[int] = []
    process = os.pidfd_open(pid)
    try:
        for number in numbers:
            fd = _libc.syscall(_SYS_PIDFD_GETFD, process, number, 0)
            if fd < 0:
                error = ctypes.get_errno()
                for other in taken:
                    os.close(other)
                raise OSError(error, os.strerror(error))
            taken.append(fd)
    finally:
        os.close(process)
    return taken


def _place(shares: Sequence[Share], directory: str, mount: Callable[[int, str], None]) -> None:
    for index, share in enumerate(shares):
        target = f"{directory}/{share.name}"
        try:
            os.makedirs(directory, mode=0o755, exist_ok=True)
            if share.is_dir:
                os.mkdir(target)
            else:
                os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            mount(index, target)
            if share.private:
                _mount("none", target, _MS_PRIVATE | _MS_REC)
            if share.readonly:
                _mount("none", target, _MS_BIND | _MS_REMOUNT | _MS_RDONLY)
        except OSError as error:
            raise ConfigError(f"cannot share {share.source} with the guest: {error.strerror}") from None


def enter_namespace(pid: int) -> None:
    """In a forked child: be in the mount namespace of that process (setns(2)). Raises OSError."""
    fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)
    try:
        if _libc.setns(fd, _CLONE_NEWNS):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(fd)


def die_with_parent() -> None:
    """In a forked child: be killed when the parent's thread ends, however it ends (prctl(2), PR_SET_PDEATHSIG)."""
    _libc.prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0)


def _mount(source: str, target: str, flags: int) -> None:
    if _libc.mount(source.encode(), target.encode(), None, ctypes.c_ulong(flags), None):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def _reason() -> str:
    return os.strerror(ctypes.get_errno())
