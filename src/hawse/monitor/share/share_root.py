"""The root directory of the share, with its mounts in the monitor's private mount namespace.

The kernel removes the namespace and its mounts when the monitor and its children end, for any reason. The host's mount
table never shows these mounts.

Root in the guest can write to writable parts of the share, and create links there. So the share's root is a small file
system that is read-only for the guest. Only the monitor creates the directories and files in it on which the
containers' trees are mounted. All mounts use descriptors, and no path with a link in it is followed.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import Sequence
from contextlib import ExitStack, suppress

from hawse.errors import ConfigError, HostError
from hawse.host.mounts.kernel_views import KERNEL_VIEWS
from hawse.host.mounts.open_sources import Source
from hawse.host.mounts.origins import Below, read_origin
from hawse.linux import mountinfo, mounts
from hawse.monitor.share import exports
from hawse.monitor.share.exports import Export, Place
from hawse.oci.guest.share import Share

#: Space for the mount points of a pod: one per shared mount, some ten per container.
_ROOT_OPTIONS = "size=1m,nr_inodes=4096,mode=755"
_HIDDEN = "hidden"
#: The directory of exports that several containers can use. No container has this name (hawse.state.store.check_id()).
COMMON = "@"
#: File systems without a server: opening one of them cannot hang, as it can for NFS when its server is unreachable.
_LOCAL = {
    *KERNEL_VIEWS.values(), "devtmpfs", "tmpfs", "ramfs", "hugetlbfs", "overlay", "ext2", "ext3", "ext4", "xfs",
    "btrfs", "f2fs", "zfs", "vfat", "exfat", "ntfs3", "iso9660", "udf", "squashfs", "erofs",
}  # fmt: skip


def enter_private_namespace() -> None:
    """Enter a private mount namespace, to which later mounts of the host still propagate.

    Call this before the process starts a second thread. Raises :class:`HostError` if it is not permitted.
    """
    try:
        mounts.unshare(mounts.SLAVE)
    except OSError as error:
        raise HostError(
            f"cannot create a mount namespace: {error.strerror}", hint="hawse needs root, with CAP_SYS_ADMIN"
        ) from None


class ShareRoot:
    """The root of the share, with one directory per container for the mount points of its shares."""

    def __init__(self, directory: str) -> None:
        """Mount the root at ``directory``, in the private mount namespace. Raises :class:`HostError`.

        The mounts have shared propagation, so later mounts also appear in virtiofsd's namespace: its mounts are slaves
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
            # Two tmpfs, one mounted over the other. Shared directories are first attached to the lower one, which the
            # guest cannot reach, and their mounts get safe options there.
            flags = mounts.NOSUID | mounts.NODEV | mounts.NOEXEC
            mounts.mount("hawse", directory, "tmpfs", flags, _ROOT_OPTIONS)
            mounts.mount("none", directory, "", mounts.PRIVATE)
            os.mkdir(f"{directory}/{_HIDDEN}", 0o700)
            self._hidden = os.open(f"{directory}/{_HIDDEN}", os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
            mounts.mount("hawse", directory, "tmpfs", flags, _ROOT_OPTIONS)
            # A detached copy of the mount. The monitor writes through it to the tmpfs, whose other mount is read-only.
            self._writable = mounts.open_tree(directory)
            mounts.mount("none", directory, "", flags | mounts.REMOUNT | mounts.BIND | mounts.RDONLY)
            mounts.mount("none", directory, "", mounts.SHARED)
            # The mount has this attribute already. This call fails on a kernel without mount_setattr(2).
            mounts.set_attributes(self._writable, mounts.ATTR_NODEV, recursive=False)
            self._exported = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as error:
            raise HostError(
                f"cannot mount the root of the share at {directory}: {error.strerror}",
                hint="hawse needs Linux 5.12 or newer, with CAP_SYS_ADMIN",
            ) from None

    def place(self, container: str, shares: Sequence[Share], sources: Sequence[Source]) -> list[str]:
        """Mount a container's shares, whose sources :func:`hawse.host.mounts.open_sources.open_sources` opened.

        The caller closes the descriptors. Returns warnings.

        Raises :class:`ConfigError` naming the source. :meth:`remove` then undoes the completed steps.
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
                        f"cannot share {share.source} with the guest: the container with this overlay was deleted",
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
        """The keys of the overlays in the share, including those of retired exports that are not removed yet."""
        exports = [*self._exports, *(export for retired in self._retired.values() for export in retired)]
        return [export.share.overlay.key for export in exports if export.share.overlay is not None]

    def places(self, container: str) -> dict[str, Place]:
        """The places of a container's shares, by their names."""
        return dict(self._places.get(container, {}))

    def open(self, container: str, name: str) -> int:
        """Open a share of a container with O_PATH. Returns the descriptor. Raises KeyError and OSError."""
        return mounts.open_beneath(self._exported, self._places[container][name].path)

    def mounts(self, container: str) -> list[str]:
        """The mounts of a container and the mounts below them, as paths from the share's root, parents first."""
        return self._mounts.get(container, [])

    def remove(self, container: str) -> None:
        """Undo :meth:`place`, even if it failed. Exports that other containers use stay until the last of these is
        removed."""
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
        """Retire the exports that only this container uses. Returns their paths in the share, for the guest to unmount.

        No later container can use them. :meth:`remove` removes them.
        """
        for export in self._exports:
            export.users.discard(container)
        unused = [export for export in self._exports if not export.users]
        self._exports = [export for export in self._exports if export.users]
        self._retired.setdefault(container, []).extend(unused)
        return [export.place for export in unused]

    def _clear(self, directory: str, only: str = "") -> None:
        """Remove the mounts of a directory in the share, and the directory if it is empty then."""
        try:
            points = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=self._writable)
        except FileNotFoundError:
            return
        try:
            for name in [only] if only else os.listdir(points):
                with suppress(OSError):
                    mounts.unmount(f"{self.directory}/{directory}/{name}")
                with suppress(OSError):  # something is still mounted there: it ends with the namespace
                    if stat.S_ISDIR(os.stat(name, dir_fd=points, follow_symlinks=False).st_mode):
                        os.rmdir(name, dir_fd=points)
                    else:
                        os.unlink(name, dir_fd=points)
        finally:
            os.close(points)
        if directory != COMMON:  # the guest keeps this directory open while it runs
            with suppress(OSError):
                os.rmdir(directory, dir_fd=self._writable)

    def _reuse(self, container: str, share: Share, source: Source) -> Place | None:
        """The place of the same file in the share; None if the file is not in the share."""
        source_status = os.fstat(source.tree)
        for export, path in exports.find(self._exports, share, source.origin):
            place = posixpath.normpath(f"{export.place}/{path}")
            try:
                fd = mounts.open_beneath(self._exported, place)
            except OSError:
                continue  # it was renamed, or another mount covers it
            try:
                status = os.fstat(fd)
            finally:
                os.close(fd)
            # If the inode differs, the directory was replaced on the host.
            if source.reused or (status.st_dev, status.st_ino) == (source_status.st_dev, source_status.st_ino):
                export.users.add(container)
                return Place(place, 0 if path == "." else source_status.st_ino)
        return None

    def _export(self, container: str, share: Share, source: Source) -> Place:
        """Mount a share in a new place, which later shares can use as well."""
        self._newest += 1  # numbers are not reused, since the guest may cache the old files
        place = f"{COMMON}/{self._newest}"
        self._exports.append(Export(place, share, source.origin, {container}))
        self._mount(COMMON, str(self._newest), share, source.tree)
        if self._exports[-1].follows:
            self._exports[-1].seen = self._below(self._exports[-1])
        return Place(place)

    def _below(self, export: Export) -> tuple[Below, ...]:
        """The mounts below an export in the share."""
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
        # Set the options before the tree is attached, so that the guest never sees it writable. NOSUID and NODEV only
        # affect the host, where device nodes must not be opened and set-uid programs must not run. The guest kernel has
        # its own mount options.
        # The propagation is set before as well: attached below a shared mount, the tree gets a copy in virtiofsd's
        # namespace, which would follow the host's mount forever if this one were made private afterwards.
        propagation = mounts.PRIVATE if share.private else mounts.SLAVE
        mounts.set_attributes(tree, mounts.ATTR_NOSUID | mounts.ATTR_NODEV, recursive=True, propagation=propagation)
        if share.readonly:
            mounts.set_attributes(tree, mounts.ATTR_RDONLY, recursive=share.readonly_below)
        with ExitStack() as failed:
            if share.is_dir and share.recursive:
                # A bind mount of / includes the host's /proc, /sys and /dev, as under runc. They are read-only here, so
                # that root in the guest cannot change the host's settings. The kernel refuses to change a mount below
                # a detached mount (fs/namespace.c, do_mount_setattr()), so the tree is attached first.
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
    """The order in which shares are placed, so that later shares can reuse the files of earlier ones.

    A read-only bind mount can use the files of a writable one, and an inner directory those of an outer one.
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
    """Select the mounts below another mount of the container, which the guest must open. Pure.

    ``table`` has (path from the container's directory, file system type). File systems with a server are left out, and
    the mounts below them.
    """
    others = [path for path, kind in table if kind not in _LOCAL]
    below = {path for path, kind in table if "/" in path and kind in _LOCAL}
    return sorted(path for path in below if not any(f"{path}/".startswith(f"{other}/") for other in others))


def _mounts_below(directory: str) -> list[tuple[str, str]]:
    """The mounts below a directory: the path from the directory, and the file system type."""
    below = [mount for mount in mountinfo.read() if mount.point.startswith(f"{directory}/")]
    return [(mount.point[len(directory) + 1 :], mount.kind) for mount in below]
