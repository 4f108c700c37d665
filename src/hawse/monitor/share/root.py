"""The directory that the guest sees: mounts in a mount namespace of the monitor's own.

The namespace is the undo: it ends with the monitor and its children, whatever ends them, and its mounts with it.
The host's own mount table never shows one of them.

Root in the guest can write wherever the share is writable, and plant links there. So the share's root is a small file
system that is read-only for the guest; only the monitor makes the directories and files in it that the containers'
trees are mounted on. Every mount is made by descriptors, and no path is followed that has a link in it.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import Sequence
from contextlib import ExitStack, suppress

from hawse.errors import ConfigError, HostError
from hawse.host.mounts.bind_sources import Source
from hawse.host.mounts.kernel_views import KERNEL_VIEWS
from hawse.host.mounts.origins import Below, read_origin
from hawse.linux import mountinfo, mounts
from hawse.monitor.share import exports
from hawse.monitor.share.exports import Export, Place
from hawse.oci.guest.share import Share

#: Room for the mount points of a pod: a container has as many as it has shared mounts, some ten.
_ROOT_OPTIONS = "size=1m,nr_inodes=4096,mode=755"
_HIDDEN = "hidden"
#: The directory of what several containers may share. No container has this name (hawse.state.store.check_id()).
COMMON = "@"
#: File systems that answer without a server: to look at one of them cannot hang, as at an NFS whose server is gone.
_LOCAL = {
    *KERNEL_VIEWS.values(), "devtmpfs", "tmpfs", "ramfs", "hugetlbfs", "overlay", "ext2", "ext3", "ext4", "xfs",
    "btrfs", "f2fs", "zfs", "vfat", "exfat", "ntfs3", "iso9660", "udf", "squashfs", "erofs",
}  # fmt: skip


def enter_private_namespace() -> None:
    """From here on mounts of this process stay its own; mounts that the host makes later still arrive.

    To be called while the process has one thread. Raises :class:`HostError` where it is not permitted.
    """
    try:
        mounts.unshare(mounts.SLAVE)
    except OSError as error:
        raise HostError(
            f"cannot make a mount namespace: {error.strerror}", hint="hawse needs root, with CAP_SYS_ADMIN"
        ) from None


class ShareRoot:
    """The root of the share. Each container has a directory in it, with the mount points of what it shares."""

    def __init__(self, directory: str) -> None:
        """Mount it at ``directory``. Raises :class:`HostError`. In a mount namespace that ends with this process.

        Its mounts are shared, so that virtiofsd gets later ones too, in its own namespace: it makes its mounts slaves
        of ours (QEMU 7.2 tools/virtiofsd/passthrough_ll.c, setup_namespaces()).
        """
        self.directory = directory
        self._exports: list[Export] = []
        self._retired: dict[str, list[Export]] = {}
        self._newest = 0
        self._places: dict[str, dict[str, Place]] = {}
        self._mounts: dict[str, list[str]] = {}
        try:
            os.makedirs(directory, mode=0o755, exist_ok=True)
            # Two tmpfs, one over the other. Shared directories are attached to the lower one first, which the guest
            # cannot reach, and their mounts are made safe there.
            flags = mounts.NOSUID | mounts.NODEV | mounts.NOEXEC
            mounts.mount("hawse", directory, "tmpfs", flags, _ROOT_OPTIONS)
            mounts.mount("none", directory, "", mounts.PRIVATE)
            os.mkdir(f"{directory}/{_HIDDEN}", 0o700)
            self._hidden = os.open(f"{directory}/{_HIDDEN}", os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
            mounts.mount("hawse", directory, "tmpfs", flags, _ROOT_OPTIONS)
            # A copy of the mount that is attached nowhere: what it writes appears in the other, which is read-only.
            self._writable = mounts.open_tree(directory)
            mounts.mount("none", directory, "", flags | mounts.REMOUNT | mounts.BIND | mounts.RDONLY)
            mounts.mount("none", directory, "", mounts.SHARED)
            # The mount has this attribute already. A kernel without mount_setattr(2) is found out here.
            mounts.set_attributes(self._writable, mounts.ATTR_NODEV, recursive=False)
            self._exported = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as error:
            raise HostError(
                f"cannot mount the root of the share at {directory}: {error.strerror}",
                hint="hawse needs Linux 5.12 or newer, with CAP_SYS_ADMIN",
            ) from None

    def place(self, container: str, shares: Sequence[Share], sources: Sequence[Source]) -> list[str]:
        """Mount what a container shares, from :func:`hawse.host.mounts.bind_sources.open_sources`.

        The descriptors stay the caller's. Returns warnings.

        Raises :class:`ConfigError` naming the source; :meth:`remove` undoes what was done by then.
        """
        warnings = []
        self._places[container] = {}
        for export in self._exports:
            if export.follows:
                export.update(self._below(export))
        for share, source in sorted(zip(shares, sources, strict=True), key=lambda pair: _rank(pair[0])):
            try:
                if not share.common:
                    place = Place(f"{container}/{share.name}")
                    self._mount(container, share.name, share, source.tree)
                elif (reused := self._reuse(container, share, source)) is not None:
                    place = reused
                elif source.reused:
                    raise ConfigError(
                        f"cannot share {share.source} with the guest: the container that has this overlay was deleted",
                        hint="create the container again",
                    )
                else:
                    warnings.append(exports.warning(self._exports, share, source.origin))
                    place = self._export(container, share, source)
            except OSError as error:
                raise ConfigError(f"cannot share {share.source} with the guest: {error.strerror}") from None
            self._places[container][share.name] = place
        self._mounts[container] = self._find_mounts(container, shares)
        return [text for text in warnings if text]

    @property
    def overlays(self) -> list[str]:
        """The overlays in it, by their keys, with those of exports that are retired and not removed yet."""
        exports = [*self._exports, *(export for retired in self._retired.values() for export in retired)]
        return [export.share.overlay.key for export in exports if export.share.overlay is not None]

    def places(self, container: str) -> dict[str, Place]:
        """Where what a container shares is, by the names of its shares."""
        return dict(self._places.get(container, {}))

    def open(self, container: str, name: str) -> int:
        """A descriptor (O_PATH) of a share of a container. Raises KeyError and OSError."""
        return mounts.open_beneath(self._exported, self._places[container][name].path)

    def mounts(self, container: str) -> list[str]:
        """The mounts of a container and those below them, as paths from the share's root, each after those above it."""
        return self._mounts.get(container, [])

    def remove(self, container: str) -> None:
        """Undo :meth:`place`, as far as it came. What other containers use stays until the last of them is removed."""
        self._places.pop(container, None)
        self._mounts.pop(container, None)
        self._clear(container)
        self.retire(container)
        for export in self._retired[container]:
            self._clear(COMMON, export.place.partition("/")[2])
        del self._retired[container]

    def _find_mounts(self, container: str, shares: Sequence[Share]) -> list[str]:
        root = os.path.realpath(self.directory)
        places = [f"{container}/{share.name}" for share in shares if share.is_dir and not share.common]
        below = [f"{container}/{path}" for path in inner(_mounts_below(f"{root}/{container}"))]
        exported = [export.place for export in self._exports if export.share.is_dir and container in export.users]
        own = {place.partition("/")[2] for place in exported}
        table = [(path, kind) for path, kind in _mounts_below(f"{root}/{COMMON}") if path.partition("/")[0] in own]
        return [*places, *below, *exported, *(f"{COMMON}/{path}" for path in inner(table))]

    def retire(self, container: str) -> list[str]:
        """Exports that only this container has used, as paths from the share's root, for the guest to unmount.

        No later container gets them. :meth:`remove` removes them.
        """
        for export in self._exports:
            export.users.discard(container)
        unused = [export for export in self._exports if not export.users]
        self._exports = [export for export in self._exports if export.users]
        self._retired.setdefault(container, []).extend(unused)
        return [export.place for export in unused]

    def _clear(self, directory: str, only: str = "") -> None:
        """Remove the mounts of a directory in the share, and the directory when it is empty."""
        try:
            points = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=self._writable)
        except FileNotFoundError:
            return
        try:
            for name in [only] if only else os.listdir(points):
                with suppress(OSError):
                    mounts.unmount(f"{self.directory}/{directory}/{name}")
                with suppress(OSError):  # something is mounted there still: it ends with the namespace
                    if stat.S_ISDIR(os.stat(name, dir_fd=points, follow_symlinks=False).st_mode):
                        os.rmdir(name, dir_fd=points)
                    else:
                        os.unlink(name, dir_fd=points)
        finally:
            os.close(points)
        if directory != COMMON:  # the guest has this one open for as long as it runs
            with suppress(OSError):
                os.rmdir(directory, dir_fd=self._writable)

    def _reuse(self, container: str, share: Share, source: Source) -> Place | None:
        """The place of the same file in the share, None where it has none."""
        wanted = os.fstat(source.tree)
        for export, path in exports.find(self._exports, share, source.origin):
            place = posixpath.normpath(f"{export.place}/{path}")
            try:
                fd = mounts.open_beneath(self._exported, place)
            except OSError:
                continue  # it was renamed, or something is mounted over it
            try:
                there = os.fstat(fd)
            finally:
                os.close(fd)
            # Another inode: the directory was replaced on the host.
            if source.reused or (there.st_dev, there.st_ino) == (wanted.st_dev, wanted.st_ino):
                export.users.add(container)
                return Place(place, 0 if path == "." else wanted.st_ino)
        return None

    def _export(self, container: str, share: Share, source: Source) -> Place:
        """A new place for files that later shares may have, too."""
        self._newest += 1  # a number is not used twice: the guest may remember what was there
        place = f"{COMMON}/{self._newest}"
        self._exports.append(Export(place, share, source.origin, {container}))
        self._mount(COMMON, str(self._newest), share, source.tree)
        if self._exports[-1].follows:
            self._exports[-1].seen = self._below(self._exports[-1])
        return Place(place)

    def _below(self, export: Export) -> tuple[Below, ...]:
        """What is mounted below an export in the share."""
        try:
            return read_origin(f"{self.directory}/{export.place}").below
        except OSError:
            return export.seen

    def _mount(self, directory: str, name: str, share: Share, tree: int) -> None:
        with suppress(FileExistsError):
            os.mkdir(directory, 0o755, dir_fd=self._writable)
        points = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=self._writable)
        try:
            if share.is_dir:
                os.mkdir(name, 0o755, dir_fd=points)
            else:
                flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW
                os.close(os.open(name, flags, 0o600, dir_fd=points))
        finally:
            os.close(points)
        target = f"{directory}/{name}"
        # Before it is anywhere: the guest never sees it writable. Device nodes and set-uid programs are for the guest's
        # kernel, which has mounts of its own; on the host nobody opens or runs them.
        # Its propagation as well: below a shared mount it gets a copy in virtiofsd's namespace, which would follow the
        # host's mount for ever where this one is made private only then.
        propagation = mounts.PRIVATE if share.private else mounts.SLAVE
        mounts.set_attributes(tree, mounts.ATTR_NOSUID | mounts.ATTR_NODEV, recursive=True, propagation=propagation)
        if share.readonly:
            mounts.set_attributes(tree, mounts.ATTR_RDONLY, recursive=share.readonly_below)
        with ExitStack() as failed:
            if share.is_dir and share.recursive:
                # A bind of / includes the host's /proc, /sys and /dev, as under runc. They are read-only here, so that
                # root in the guest cannot change the host's settings. The kernel refuses to change a mount below one
                # that is attached nowhere (fs/namespace.c, do_mount_setattr()), so the tree is attached first.
                mounts.attach(tree, self._hidden, target)
                failed.callback(mounts.unmount, f"/proc/self/fd/{tree}/.")
                views = {*KERNEL_VIEWS.values(), "devtmpfs"}
                for view, kind in _mounts_below(f"{os.path.realpath(self.directory)}/{_HIDDEN}"):
                    if kind in views:
                        _protect(tree, view)
            place = mounts.open_beneath(self._exported, target)
            try:
                mounts.attach(tree, place, target)
            finally:
                os.close(place)
            failed.pop_all()


def _rank(share: Share) -> tuple[bool, int]:
    """The order in which shares are placed: what comes first can have the files of what comes later.

    A read-only bind can have those of a writable one, and a directory those of an outer one.
    """
    return share.readonly, len([part for part in share.source.split("/") if part])


def _protect(tree: int, view: str) -> None:
    """Make the mount at a path below a tree read-only. Raises OSError unless another mount hides it."""
    try:
        mounts.set_attributes(tree, mounts.ATTR_RDONLY, recursive=True, path=view)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EINVAL):
            raise


def inner(table: Sequence[tuple[str, str]]) -> list[str]:
    """Those mounts, of (path from a container's directory, type of file system), that are below another mount of the
    container. Pure.

    The guest is to look at each. Those that a server answers for are left out, and those below them.
    """
    others = [path for path, kind in table if kind not in _LOCAL]
    below = {path for path, kind in table if "/" in path and kind in _LOCAL}
    return sorted(path for path in below if not any(f"{path}/".startswith(f"{other}/") for other in others))


def _mounts_below(directory: str) -> list[tuple[str, str]]:
    """The mounts below a directory, each by its path from there and its type."""
    found = [mount for mount in mountinfo.read() if mount.point.startswith(f"{directory}/")]
    return [(mount.point[len(directory) + 1 :], mount.kind) for mount in found]
