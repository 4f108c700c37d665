"""The directory that the guest sees: mounts in a mount namespace of the monitor's own.

The namespace is the undo: it ends with the monitor and its children, whatever ends them, and its mounts with it.
The host's own mount table never shows one of them. All ctypes of the host side is here.

Root in the guest can write wherever the share is writable, and plant links there. So the share's root is a small file
system that is read-only for the guest; only the monitor makes the directories and files in it that the containers'
trees are mounted on. Every mount is made by descriptors, and no path is followed that has a link in it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import stat
import struct
from collections.abc import Sequence
from contextlib import ExitStack, suppress

from hawse.errors import ConfigError, HostError
from hawse.sandbox.plan import Share

_CLONE_NEWNS = 0x20000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT, _MS_BIND, _MS_REC = 1, 2, 4, 8, 32, 4096, 16384
_MS_PRIVATE, _MS_SLAVE, _MS_SHARED = 1 << 18, 1 << 19, 1 << 20
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_AT_FDCWD, _AT_SYMLINK_NOFOLLOW, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x100, 0x1000, 0x8000
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH, _MOVE_MOUNT_T_EMPTY_PATH = 4, 0x40
_RESOLVE_NO_SYMLINKS, _RESOLVE_BENEATH = 4, 8
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID, _MOUNT_ATTR_NODEV = 1, 2, 4
#: The same on every architecture (Linux include/uapi/asm-generic/unistd.h, arch/x86/entry/syscalls/syscall_64.tbl).
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_OPENAT2, _SYS_PIDFD_GETFD, _SYS_MOUNT_SETATTR = 428, 429, 437, 438, 442
_PR_SET_PDEATHSIG = 1
#: Room for the mount points of a pod: a container has as many as it has shared mounts, some ten.
_ROOT_OPTIONS = "size=1m,nr_inodes=4096,mode=755"
_HIDDEN = "hidden"
#: File systems by which a kernel is looked at and controlled (Linux include/uapi/linux/magic.h).
_KERNEL_VIEWS = {
    0x9FA0: "proc", 0x62656572: "sysfs", 0x27E0EB: "cgroup", 0x63677270: "cgroup2", 0x64626720: "debugfs",
    0x74726163: "tracefs", 0x73636673: "securityfs", 0x62656570: "configfs", 0xCAFE4A11: "bpf", 0xDE5E81E4: "efivarfs",
    0x6165676C: "pstore", 0xF97CFF8C: "selinuxfs", 0x1CD1: "devpts", 0x42494E4D: "binfmt_misc",
}  # fmt: skip
_libc = ctypes.CDLL(None, use_errno=True)


def enter_private_namespace() -> None:
    """From here on mounts of this process stay its own; mounts that the host makes later still arrive.

    To be called while the process has one thread. Raises :class:`HostError` where it is not permitted.
    """
    if _libc.unshare(_CLONE_NEWNS):
        reason = os.strerror(ctypes.get_errno())
        raise HostError(f"cannot make a mount namespace: {reason}", hint="hawse needs root, with CAP_SYS_ADMIN")
    _mount("none", "/", "", _MS_REC | _MS_SLAVE)


class ShareRoot:
    """The root of the share. Each container has a directory in it, with the mount points of what it shares."""

    def __init__(self, directory: str) -> None:
        """Mount it at ``directory``. Raises :class:`HostError`. In a mount namespace that ends with this process.

        Its mounts are shared, so that virtiofsd gets later ones too, in its own namespace: it makes its mounts slaves
        of ours (QEMU 7.2 tools/virtiofsd/passthrough_ll.c, setup_namespaces()).
        """
        self.directory = directory
        try:
            os.makedirs(directory, mode=0o755, exist_ok=True)
            # Two tmpfs, one over the other. Shared directories are attached to the lower one first, which the guest
            # cannot reach, and their mounts are made safe there.
            _mount("hawse", directory, "tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, _ROOT_OPTIONS)
            _mount("none", directory, "", _MS_PRIVATE)
            os.mkdir(f"{directory}/{_HIDDEN}", 0o700)
            self._hidden = os.open(f"{directory}/{_HIDDEN}", os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
            _mount("hawse", directory, "tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, _ROOT_OPTIONS)
            # A copy of the mount that is attached nowhere: what it writes appears in the other, which is read-only.
            self._writable = _open_tree(directory, 0)
            flags = _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
            _mount("none", directory, "", flags)
            _mount("none", directory, "", _MS_SHARED)
            # The mount has this attribute already. A kernel without mount_setattr(2) is found out here.
            _set_attributes(self._writable, _MOUNT_ATTR_NODEV, recursive=False)
            self._exported = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as error:
            raise HostError(
                f"cannot mount the root of the share at {directory}: {error.strerror}",
                hint="hawse needs Linux 5.12 or newer, with CAP_SYS_ADMIN",
            ) from None

    def place(self, container: str, shares: Sequence[Share], trees: Sequence[int]) -> None:
        """Mount what a container shares, from descriptors of :func:`open_trees`, which stay the caller's.

        Raises :class:`ConfigError` naming the source; :meth:`remove` undoes what was done by then.
        """
        for share, tree in zip(shares, trees, strict=True):
            try:
                self._place(container, share, tree)
            except OSError as error:
                raise ConfigError(f"cannot share {share.source} with the guest: {error.strerror}") from None

    def remove(self, container: str) -> None:
        """Undo :meth:`place`, as far as it came."""
        try:
            points = os.open(container, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=self._writable)
        except FileNotFoundError:
            return
        try:
            for name in os.listdir(points):
                target = f"{self.directory}/{container}/{name}"
                _libc.umount2(target.encode(), _MNT_DETACH | _UMOUNT_NOFOLLOW)
                with suppress(OSError):  # something is mounted there still: it ends with the namespace
                    if stat.S_ISDIR(os.stat(name, dir_fd=points, follow_symlinks=False).st_mode):
                        os.rmdir(name, dir_fd=points)
                    else:
                        os.unlink(name, dir_fd=points)
        finally:
            os.close(points)
        with suppress(OSError):
            os.rmdir(container, dir_fd=self._writable)

    def _place(self, container: str, share: Share, tree: int) -> None:
        with suppress(FileExistsError):
            os.mkdir(container, 0o755, dir_fd=self._writable)
        points = os.open(container, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=self._writable)
        try:
            if share.is_dir:
                os.mkdir(share.name, 0o755, dir_fd=points)
            else:
                flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW
                os.close(os.open(share.name, flags, 0o600, dir_fd=points))
        finally:
            os.close(points)
        target = f"{container}/{share.name}"
        # Before it is anywhere: the guest never sees it writable. Device nodes and set-uid programs are for the guest's
        # kernel, which has mounts of its own; on the host nobody opens or runs them.
        # Its propagation as well: below a shared mount it gets a copy in virtiofsd's namespace, which would follow the
        # host's mount for ever where this one is made private only then.
        propagation = _MS_PRIVATE if share.private else _MS_SLAVE
        _set_attributes(tree, _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV, recursive=True, propagation=propagation)
        if share.readonly:
            _set_attributes(tree, _MOUNT_ATTR_RDONLY, recursive=share.readonly_below)
        if share.is_dir and share.recursive:
            # A bind of / includes the host's /proc, /sys and /dev, as under runc. They are read-only here, so that root
            # in the guest cannot change the host's settings. The kernel refuses to change a mount below one that is
            # attached nowhere (fs/namespace.c, do_mount_setattr()), so the tree is attached first.
            _attach(tree, self._hidden, target)
            for view in _views_below(f"{os.path.realpath(self.directory)}/{_HIDDEN}"):
                _protect(tree, view)
        place = self._open_beneath(target)
        try:
            _attach(tree, place, target)
        finally:
            os.close(place)

    def _open_beneath(self, path: str) -> int:
        """A descriptor of a place in the exported mount, by a path without links (openat2(2))."""
        how = struct.pack("QQQ", os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS)
        return _check(_libc.syscall(_SYS_OPENAT2, self._exported, path.encode(), how, len(how)), path)


def open_trees(shares: Sequence[Share]) -> list[int]:
    """Descriptors of what is to be shared, as this process sees it: for :meth:`ShareRoot.place`, in whose mount
    namespace mounts that were made after it may never come. Raises :class:`ConfigError` naming the source."""
    with ExitStack() as undo:
        trees = []
        for share in shares:
            trees.append(_open_source(share))
            undo.callback(os.close, trees[-1])
        undo.pop_all()
    return trees


def take_descriptors(pid: int, numbers: Sequence[int]) -> list[int]:
    """Descriptors of another process's, as our own (pidfd_getfd(2)). Raises OSError, with none taken."""
    taken: list[int] = []
    process = os.pidfd_open(pid)
    try:
        for number in numbers:
            try:
                taken.append(_check(_libc.syscall(_SYS_PIDFD_GETFD, process, number, 0), ""))
            except OSError:
                for other in taken:
                    os.close(other)
                raise
    finally:
        os.close(process)
    return taken


def enter_namespace(pid: int) -> None:
    """In a forked child: be in the mount namespace of that process (setns(2)). Raises OSError."""
    fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)
    try:
        _check(_libc.setns(fd, _CLONE_NEWNS), f"/proc/{pid}/ns/mnt")
    finally:
        os.close(fd)


def die_with_parent() -> None:
    """In a forked child: be killed when the parent's thread ends, however it ends (prctl(2), PR_SET_PDEATHSIG)."""
    _libc.prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0)


def _open_source(share: Share) -> int:
    try:
        tree = _open_tree(share.source, _AT_RECURSIVE if share.recursive else 0)
    except OSError as error:
        raise ConfigError(f"cannot share {share.source} with the guest: {error.strerror}") from None
    try:
        if kind := _kernel_view(tree):
            # The plan leaves out what a path or its links show to be such a one. This one was mounted elsewhere, or the
            # path was replaced since.
            raise ConfigError(
                f"cannot share {share.source} with the guest: it is on a file system of the host's kernel, {kind}",
                hint="bind /proc, /sys or /dev: the container gets the guest kernel's own",
            )
    except BaseException:
        os.close(tree)
        raise
    return tree


def _kernel_view(tree: int) -> str:
    """The type of the file system where that shows the host's kernel or devices, "" where it does not.

    The type of /dev is the same number as a tmpfs's, so /dev is recognised by its device number.
    """
    kind = _KERNEL_VIEWS.get(_file_system(tree), "")
    devices = os.stat("/dev").st_dev
    if not kind and os.fstat(tree).st_dev == devices != os.stat("/").st_dev:
        return "devtmpfs"
    return kind


def _protect(tree: int, view: str) -> None:
    """Make the mount at a path below a tree read-only. Raises OSError unless another mount hides it."""
    try:
        _set_attributes(tree, _MOUNT_ATTR_RDONLY, recursive=True, path=view)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EINVAL):
            raise


def _views_below(directory: str) -> list[str]:
    """The paths, from a directory, of views of the host's kernel that are mounted below it (proc(5), mountinfo)."""
    kinds = {*_KERNEL_VIEWS.values(), "devtmpfs"}
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields, _, rest = line.partition(" - ")
            point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields.split(" ")[4])
            if rest.split(" ")[0] in kinds and point.startswith(f"{directory}/"):
                found.append(point[len(directory) + 1 :])
    return found


def _file_system(fd: int) -> int:
    """The type of the file system, by its number (statfs(2), f_type)."""
    answer = ctypes.create_string_buffer(256)  # more than any architecture's struct statfs
    _check(_libc.fstatfs(fd, answer), "")
    return ctypes.c_long.from_buffer(answer).value


def _open_tree(path: str, flags: int) -> int:
    """A descriptor of a copy of the mount at ``path``, which is attached nowhere (open_tree(2))."""
    flags |= _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC
    return _check(_libc.syscall(_SYS_OPEN_TREE, _AT_FDCWD, path.encode(), flags), path)


def _set_attributes(tree: int, attributes: int, *, recursive: bool, propagation: int = 0, path: str = "") -> None:
    """Set attributes of a mount and keep those that it has (mount_setattr(2)). ``path``: of a mount below ``tree``."""
    request = struct.pack("QQQQ", attributes, 0, propagation, 0)
    flags = (_AT_SYMLINK_NOFOLLOW if path else _AT_EMPTY_PATH) | (_AT_RECURSIVE if recursive else 0)
    _check(_libc.syscall(_SYS_MOUNT_SETATTR, tree, os.fsencode(path), flags, request, len(request)), path)


def _attach(tree: int, place: int, path: str) -> None:
    """Attach the mount of a descriptor at the place of another (move_mount(2)); ``path`` names it in errors."""
    flags = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH
    _check(_libc.syscall(_SYS_MOVE_MOUNT, tree, b"", place, b"", flags), path)


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    options = data.encode() or None
    _check(_libc.mount(source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags), options), target)


def _check(result: int, path: str) -> int:
    """The result of a system call. Raises OSError for -1."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result
