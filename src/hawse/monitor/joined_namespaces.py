"""Which container of a sandbox a path of ``linux.namespaces`` means.

The namespaces are the guest's: what an engine names on the host stands for one of them. That is sure of the pid that it
was told, of the PID namespace that the process of that pid has, and of a namespace that the specification of the first
container names as its own: some engines make it beforehand, and keep it by a mount (CRI-O internal/config/nsmgr).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from hawse.errors import ConfigError
from hawse.json_text import parse

_PROCESS = re.compile(r"/proc/([1-9][0-9]{0,9})/ns/([a-z]+)")


def owner_of(kind: str, path: str, *, pids: Mapping[str, int], first: str, own: Mapping[str, str]) -> str:
    """The container's name. Raises :class:`ConfigError` for a path that is of none.

    ``pids`` are the processes that stand for the containers on the host, 0 for none and for one that has ended, whose
    pid may be another process's; ``own`` are the paths, by kind, of
    the first container's specification.
    """
    match = _PROCESS.fullmatch(path)
    if match and match[2] == kind:
        for name, pid in pids.items():
            if pid == int(match[1]):
                return name
    if path == own.get(kind):
        return first
    found = _identity(path)
    if found is not None:
        # Of other kinds these processes have the host's own (hawse.commands.spawn).
        for name, pid in pids.items() if kind == "pid" else ():
            if pid and _identity(f"/proc/{pid}/ns/pid") == found:
                return name
        if kind in own and _identity(own[kind]) == found:
            return first
    raise ConfigError(
        f"linux.namespaces[type={kind}].path: {path[:200]}: of no container in the sandbox {first}",
        hint="name one of a container of the same pod, by the pid that its state tells, or take the path out",
    )


def own_paths(bundle: str) -> dict[str, str]:
    """The paths, by kind, of the namespaces in a bundle's specification; none where it is gone."""
    try:
        with open(f"{bundle}/config.json", "rb") as file:
            namespaces = parse(file.read())["linux"]["namespaces"]
        return {entry["type"]: entry["path"] for entry in namespaces if entry.get("path")}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def _identity(path: str) -> tuple[int, int] | None:
    """What tells a namespace from others (ioctl_ns(2)); None where nothing is there."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
