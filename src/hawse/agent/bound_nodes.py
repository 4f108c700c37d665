"""Device nodes of a specification that would lie on a shared file system.

virtiofsd may not make device nodes there (docs/security.md). Nodes below the container's own /dev, a tmpfs, are not
affected; a container without a mount on /dev gets such a tmpfs. The others are made in the guest's /dev and bound to
their paths.
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Sequence
from contextlib import suppress

from hawse.errors import VmError

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from typing import Any

#: Below the guest's /dev, since the guest's /run is mounted with nodev.
DIRECTORY = "/dev/hawse-nodes"
_TYPES = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK}
#: The mount on /dev of a container whose specification has none. Files of the image's /dev are copied into it.
_DEV = {
    "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
    "options": ["nosuid", "strictatime", "mode=755", "size=65536k", "tmpcopyup"],
}  # fmt: skip
_OPTIONS = ["bind", "nosuid", "noexec"]


def bind_nodes(spec: dict[str, Any], directory: str) -> list[dict[str, Any]]:
    """Replace the entries of ``linux.devices`` that lie on the host's files by binds of ``<directory>/<number>``.

    Changes the specification in place. Returns the replaced entries, in the order of their numbers, for
    :func:`make_nodes`.
    """
    linux = spec.get("linux") or {}
    devices = linux.get("devices") or []
    if not any(posixpath.normpath(mount["destination"]) in ("/", "/dev") for mount in spec.get("mounts") or ()):
        spec["mounts"] = [dict(_DEV), *(spec.get("mounts") or ())]
    replaced = [d for d in devices if d["type"] in _TYPES and _is_on_host(d["path"], spec.get("mounts") or ())]
    if replaced:
        linux["devices"] = [device for device in devices if device not in replaced]
        binds = [
            {"destination": device["path"], "type": "bind", "source": f"{directory}/{number}", "options": _OPTIONS}
            for number, device in enumerate(replaced)
        ]
        spec["mounts"] = [*(spec.get("mounts") or []), *binds]
    return replaced


def make_nodes(devices: Sequence[dict[str, Any]], directory: str) -> None:
    """Make the nodes of :func:`bind_nodes`, with the modes and owners that the specification gives.

    Raises :class:`VmError` naming the node; :func:`remove_nodes` undoes what was done by then.
    """
    for number, device in enumerate(devices):
        path = f"{directory}/{number}"
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
            numbers = os.makedev(device.get("major") or 0, device.get("minor") or 0)
            os.mknod(path, _TYPES[device["type"]] | 0o600, numbers)
            os.chown(path, device.get("uid") or 0, device.get("gid") or 0)
            mode = device.get("fileMode")
            # The default is runc's (libcontainer/specconv/spec_linux.go, createDevices()).
            os.chmod(path, 0o666 if mode is None else mode & 0o7777)
        except (OSError, OverflowError) as error:
            raise VmError(f"linux.devices: {device['path']}: the guest cannot make the node: {error}") from None


def remove_nodes(directory: str) -> None:
    """Remove the nodes of a container; without any this does nothing."""
    with suppress(OSError):
        for name in os.listdir(directory):
            os.unlink(f"{directory}/{name}")
        os.rmdir(directory)


def _is_on_host(path: str, mounts: Sequence[dict[str, Any]]) -> bool:
    """Whether the innermost mount around a path is a share of the host's, as the root file system is."""
    path = posixpath.normpath(path)
    innermost: dict[str, Any] = {"type": "bind", "destination": "/"}
    for mount in mounts:
        where = posixpath.normpath(mount["destination"])
        around = path.startswith(f"{where.rstrip('/')}/")
        if around and len(where) >= len(posixpath.normpath(innermost["destination"])):
            innermost = mount
    is_bind = innermost.get("type") == "bind" or bool({"bind", "rbind"} & set(innermost.get("options") or ()))
    return is_bind and innermost.get("source") != "/dev"
