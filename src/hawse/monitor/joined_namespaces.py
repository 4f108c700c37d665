"""Find the container of a sandbox whose namespace a path of ``linux.namespaces`` names.

The containers' namespaces are in the guest, so a path on the host only represents one of them. Three paths identify a
container: that of the pid in its state, that of the PID namespace of this process, and a path in the first container's
specification. Some engines create such a namespace in advance, and keep it by a bind mount (CRI-O
internal/config/nsmgr).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from hawse.errors import ConfigError
from hawse.json_text import parse

_PROCESS = re.compile(r"/proc/([1-9][0-9]{0,9})/ns/([a-z]+)")


def owner_of(kind: str, path: str, *, pids: Mapping[str, int], first: str, own: Mapping[str, str]) -> str:
    """Return the container's id. Raises :class:`ConfigError` if the path belongs to no container.

    ``pids`` are the pids of the containers' first proxies on the host. They are 0 without a process, and after its end,
    since the kernel may reuse the pid. ``own`` are the paths in the first container's specification, by kind.
    """
    match = _PROCESS.fullmatch(path)
    if match and match[2] == kind:
        for name, pid in pids.items():
            if pid == int(match[1]):
                return name
    if path == own.get(kind):
        return first
    identity = _identity(path)
    if identity is not None:
        # The proxies' other namespaces are the host's (hawse.commands.spawn).
        for name, pid in pids.items() if kind == "pid" else ():
            if pid and _identity(f"/proc/{pid}/ns/pid") == identity:
                return name
        if kind in own and _identity(own[kind]) == identity:
            return first
    raise ConfigError(
        f"linux.namespaces[type={kind}].path: {path[:200]}: belongs to no container in the sandbox {first}",
        hint="use a namespace of a container of the same pod, by the pid in its state, or remove the path",
    )


def own_paths(bundle: str) -> dict[str, str]:
    """The namespace paths in a bundle's specification, by kind; empty if it cannot be read."""
    try:
        with open(f"{bundle}/config.json", "rb") as file:
            namespaces = parse(file.read())["linux"]["namespaces"]
        return {entry["type"]: entry["path"] for entry in namespaces if entry.get("path")}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def _identity(path: str) -> tuple[int, int] | None:
    """Device and inode, which identify a namespace (ioctl_ns(2)); None if the path does not exist."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
