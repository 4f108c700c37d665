"""Attributes of a container's mounts that crun 1.8.1 (Debian 12) drops, set once it has made the container.

- In a user namespace it binds by descriptors that it opened outside, and ignores nosuid, nodev, noexec and the atime
  options of such a bind (src/libcrun/linux.c, do_mounts()).
- It makes a path read-only by a bind of it onto itself, and remounts that without the attributes of the mount that the
  path is on (do_masked_or_readonly_path()): /proc/sys was nosuid, nodev and noexec.

The first process waits to be started meanwhile. Attributes are only added.
"""

from __future__ import annotations

import errno
import os
import posixpath

from hawse.agent.system import syscalls
from hawse.errors import VmError
from hawse.linux import mounts

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

    #: The attributes to set and those to clear before (mount_setattr(2)).
    Change = tuple[int, int]

# include/uapi/linux/mount.h
_NOSUID, _NODEV, _NOEXEC, _NOATIME, _STRICTATIME, _NODIRATIME = 2, 4, 8, 0x10, 0x20, 0x80
_ATIME = 0x70  # one of three: relatime is none of the two
#: By option: what it sets, and what else is then cleared.
_OPTIONS: dict[str, Change] = {
    "nosuid": (_NOSUID, 0), "suid": (0, _NOSUID), "nodev": (_NODEV, 0), "dev": (0, _NODEV), "noexec": (_NOEXEC, 0),
    "exec": (0, _NOEXEC), "noatime": (_NOATIME, _ATIME), "atime": (0, _NOATIME), "relatime": (0, _ATIME),
    "strictatime": (_STRICTATIME, _ATIME), "nodiratime": (_NODIRATIME, 0), "diratime": (0, _NODIRATIME),
}  # fmt: skip
#: Those that a read-only path keeps, as /proc/PID/mountinfo has them (proc(5)).
_KEPT = {"nosuid": _NOSUID, "nodev": _NODEV, "noexec": _NOEXEC, "noatime": _NOATIME, "nodiratime": _NODIRATIME}


def of_options(options: Sequence[str]) -> int:
    """The attributes that a mount's options ask for. Pure."""
    found = 0
    for option in options:
        adds, clears = _OPTIONS.get(option, (0, 0))
        found = found & ~clears | adds
    return found


def binds(spec: Mapping[str, Any]) -> dict[str, int]:
    """The destinations of binds that ask for attributes, and which; of several at one the last counts. Pure."""
    found: dict[str, int] = {}
    for mount in spec.get("mounts") or ():
        options = mount.get("options") or ()
        is_bind = mount.get("type") == "bind" or bool({"bind", "rbind"} & set(options))
        destination = posixpath.normpath(f"/{mount['destination'].lstrip('/')}")
        # What is mounted at it or above it later hides it.
        for hidden in [path for path in found if path == destination or path.startswith(f"{destination}/")]:
            del found[hidden]
        if is_bind and (attributes := of_options(options)):
            found[destination] = attributes
    return found


def above(mountinfo: str, number: int) -> int:
    """The attributes of the mount that the mount of this number is on. Pure."""
    lines = {int(words[0]): words for words in (line.split(" ") for line in mountinfo.split("\n")) if len(words) > 5}
    mount = lines.get(number)
    parent = lines.get(int(mount[1])) if mount is not None else None
    return sum(_KEPT.get(option, 0) for option in parent[5].split(",")) if parent is not None else 0


def keep(spec: Mapping[str, Any], process: int, *, mapped: bool) -> None:
    """Set them in the container whose first process's directory in /proc is open as ``process``; ``mapped``: it has a
    user namespace. Raises :class:`VmError` naming the mount."""
    wanted = binds(spec) if mapped else {}
    readonly = (spec.get("linux") or {}).get("readonlyPaths") or ()
    if not wanted and not readonly:
        return
    namespace = os.open("ns/mnt", os.O_RDONLY, dir_fd=process)
    try:
        # A container has its own; a process of this one is none.
        if not os.path.samestat(os.fstat(namespace), os.stat("/proc/self/ns/mnt")):
            own = os.open("/proc/self/fdinfo", os.O_RDONLY)
            try:
                syscalls.in_mounts(namespace, lambda: _keep(wanted, readonly, process, own))
            finally:
                os.close(own)
    finally:
        os.close(namespace)


def _keep(wanted: Mapping[str, int], readonly: Sequence[str], process: int, own: int) -> None:
    """In the container's mounts, where paths and their links are the container's. ``own`` is /proc/self/fdinfo."""
    for path, mount in _opened(wanted):
        _set(path, mount, wanted[path])
    with open(os.open("mountinfo", os.O_RDONLY, dir_fd=process), "rb") as file:
        table = os.fsdecode(file.read())
    for path, mount in _opened(readonly):
        if attributes := above(table, _number(own, mount)):
            _set(path, mount, attributes)


def _opened(paths: Mapping[str, int] | Sequence[str]) -> Iterator[tuple[str, int]]:
    for path in paths:
        try:
            mount = os.open(path, os.O_PATH)
        except OSError:
            continue  # crun passes over such a path as well, and another mount may hide a bind
        try:
            yield path, mount
        finally:
            os.close(mount)


def _number(own: int, fd: int) -> int:
    """The number of the mount that a descriptor is on (proc(5), fdinfo, mnt_id)."""
    with open(os.open(str(fd), os.O_RDONLY, dir_fd=own)) as file:
        return next(int(line.split()[1]) for line in file if line.startswith("mnt_id:"))


def _set(path: str, mount: int, attributes: int) -> None:
    try:
        mounts.set_attributes(mount, attributes, recursive=False, cleared=_ATIME if attributes & _ATIME else 0)
    except OSError as error:
        if error.errno != errno.EINVAL:  # nothing is mounted there: crun has passed over it
            raise VmError(f"mounts: {path[:200]}: options cannot be set: {error.strerror}") from None
