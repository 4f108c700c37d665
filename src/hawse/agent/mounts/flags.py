"""Restore attributes of a container's mounts that crun 1.8.1 (Debian 12) drops, after crun has created the container.

- In a user namespace, crun binds by descriptors that it opened outside of the namespace, and ignores nosuid, nodev,
  noexec and the atime options of such a bind (src/libcrun/linux.c, do_mounts()).
- crun makes a path read-only by binding it to itself, and remounts the bind without the attributes of the mount that
  the path is on (do_masked_or_readonly_path()). For example, /proc/sys was nosuid, nodev and noexec.

Meanwhile the first process waits to be started. Attributes are only added.
"""

from __future__ import annotations

import errno
import os
import posixpath

from hawse.agent.system import syscalls
from hawse.errors import VmError
from hawse.linux import mounts
from hawse.oci.document import is_bind

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

    #: The attributes to set, and those to clear first (mount_setattr(2)).
    Change = tuple[int, int]

# include/uapi/linux/mount.h
_NOSUID, _NODEV, _NOEXEC, _NOATIME, _STRICTATIME, _NODIRATIME = 2, 4, 8, 0x10, 0x20, 0x80
_ATIME = 0x70  # mask of the atime attributes: without noatime and strictatime, a mount is relatime
#: For each option, the attributes that it sets and those that it clears.
_OPTIONS: dict[str, Change] = {
    "nosuid": (_NOSUID, 0), "suid": (0, _NOSUID), "nodev": (_NODEV, 0), "dev": (0, _NODEV), "noexec": (_NOEXEC, 0),
    "exec": (0, _NOEXEC), "noatime": (_NOATIME, _ATIME), "atime": (0, _NOATIME), "relatime": (0, _ATIME),
    "strictatime": (_STRICTATIME, _ATIME), "nodiratime": (_NODIRATIME, 0), "diratime": (0, _NODIRATIME),
}  # fmt: skip
#: The attributes that a read-only path keeps, by their names in /proc/PID/mountinfo (proc(5)).
_KEPT = {"nosuid": _NOSUID, "nodev": _NODEV, "noexec": _NOEXEC, "noatime": _NOATIME, "nodiratime": _NODIRATIME}


def of_options(options: Sequence[str]) -> int:
    """The attributes that a mount's options request. Pure."""
    attributes = 0
    for option in options:
        adds, clears = _OPTIONS.get(option, (0, 0))
        attributes = attributes & ~clears | adds
    return attributes


def bind_attributes(spec: Mapping[str, Any]) -> dict[str, int]:
    """The attributes that binds request, by destination; of several binds at one destination, the last. Pure."""
    by_destination: dict[str, int] = {}
    for mount in spec.get("mounts") or ():
        options = mount.get("options") or ()
        destination = posixpath.normpath(f"/{mount['destination'].lstrip('/')}")
        # A later mount at the same destination or above it hides a bind.
        for hidden in [path for path in by_destination if path == destination or path.startswith(f"{destination}/")]:
            del by_destination[hidden]
        if is_bind(mount) and (attributes := of_options(options)):
            by_destination[destination] = attributes
    return by_destination


def parent_attributes(mountinfo: str, number: int) -> int:
    """The attributes of the parent of the mount with this id. Pure."""
    lines = {int(words[0]): words for words in (line.split(" ") for line in mountinfo.split("\n")) if len(words) > 5}
    mount = lines.get(number)
    parent = lines.get(int(mount[1])) if mount is not None else None
    return sum(_KEPT.get(option, 0) for option in parent[5].split(",")) if parent is not None else 0


def restore(spec: Mapping[str, Any], process: int, *, mapped: bool) -> None:
    """Restore the attributes in a container. ``process`` is an open descriptor of its first process's /proc/PID.

    ``mapped``: the container uses a user namespace. Raises :class:`VmError` naming the mount.
    """
    requested = bind_attributes(spec) if mapped else {}
    readonly = (spec.get("linux") or {}).get("readonlyPaths") or ()
    if not requested and not readonly:
        return
    namespace = os.open("ns/mnt", os.O_RDONLY, dir_fd=process)
    try:
        # A process in the agent's mount namespace is not in the container.
        if not os.path.samestat(os.fstat(namespace), os.stat("/proc/self/ns/mnt")):
            own = os.open("/proc/self/fdinfo", os.O_RDONLY)
            try:
                syscalls.in_mounts(namespace, lambda: _restore(requested, readonly, process, own))
            finally:
                os.close(own)
    finally:
        os.close(namespace)


def _restore(requested: Mapping[str, int], readonly: Sequence[str], process: int, own: int) -> None:
    """Restore them in the container's mount namespace, whose paths it controls. ``own`` is /proc/self/fdinfo."""
    for path, mount in _opened(requested):
        _set(path, mount, requested[path])
    with open(os.open("mountinfo", os.O_RDONLY, dir_fd=process), "rb") as file:
        table = os.fsdecode(file.read())
    for path, mount in _opened(readonly):
        if attributes := parent_attributes(table, _mount_id(own, mount)):
            _set(path, mount, attributes)


def _opened(paths: Mapping[str, int] | Sequence[str]) -> Iterator[tuple[str, int]]:
    for path in paths:
        try:
            mount = os.open(path, os.O_PATH)
        except OSError:
            continue  # crun skips such a path as well, and another mount may hide a bind
        try:
            yield path, mount
        finally:
            os.close(mount)


def _mount_id(own: int, fd: int) -> int:
    """The id of the mount that a descriptor is on (proc(5), fdinfo, mnt_id)."""
    with open(os.open(str(fd), os.O_RDONLY, dir_fd=own)) as file:
        return next(int(line.split()[1]) for line in file if line.startswith("mnt_id:"))


def _set(path: str, mount: int, attributes: int) -> None:
    try:
        mounts.set_attributes(mount, attributes, recursive=False, cleared=_ATIME if attributes & _ATIME else 0)
    except OSError as error:
        if error.errno != errno.EINVAL:  # EINVAL: the path is not a mount point, because crun has skipped it
            raise VmError(f"mounts: {path[:200]}: options cannot be set: {error.strerror}") from None
