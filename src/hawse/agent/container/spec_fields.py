"""Find the field of a specification that an error of crun concerns. crun names files, system calls and mounts. Pure.

The phrases are those of crun 1.8.1 and 1.21 (src/libcrun/container.c, linux.c, cgroup-resources.c, seccomp.c).
"""

from __future__ import annotations

import posixpath
import re

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

#: The first phrase that matches decides.
_PHRASES = (
    (r"[ug]id_map|setres[ug]id", "linux.uidMappings and linux.gidMappings"),
    (r"setgroups", "process.user.additionalGids"),
    (r"chdir ", "process.cwd"),
    (r"oom_score_adj", "process.oomScoreAdj"),
    (r"setrlimit ", "process.rlimits"),
    (r"sethostname", "hostname"),
    (r"setdomainname", "domainname"),
    (r"sysctl|/proc/sys/", "linux.sysctl"),
    (r"seccomp", "linux.seccomp"),
    (r"persona", "linux.personality"),
    (r"executing hook", "hooks.startContainer"),
    (r"mknod ", "linux.devices"),
    (r"memory limit could be too low|`memory\.", "linux.resources.memory"),
    (r"`pids\.", "linux.resources.pids"),
    (r"`cpu\.|`cpuset\.", "linux.resources.cpu"),
    (r"`hugetlb\.", "linux.resources.hugepageLimits"),
    (r"`(?:io|blkio)\.", "linux.resources.blockIO"),
)
#: The destination of a mount is the group of each pattern.
_MOUNTS = (r"mount `[^`]*` to `([^`]*)`", r"target `([^`]*)`", r"(?:mkdir|remount|open|mount_setattr) `([^`]*)`")


def field_of(message: str, spec: Mapping[str, Any]) -> str:
    """The field, with the mount or the device that the message concerns; "" if the message does not show it."""
    for name in ((spec.get("linux") or {}).get("resources") or {}).get("unified") or ():
        if f"`{name}`" in message:
            return "linux.resources.unified"
    for phrase in _MOUNTS:
        if (match := re.search(phrase, message)) and (field := _at(_absolute(match[1]), spec)):
            return field
    return next((field for phrase, field in _PHRASES if re.search(phrase, message)), "")


def _at(path: str, spec: Mapping[str, Any]) -> str:
    """The device or the mount at a path; of several mounts, the last one."""
    for device in (spec.get("linux") or {}).get("devices") or ():
        if _absolute(device["path"]) == path:
            return f"linux.devices: {path}"
    for mount in reversed(spec.get("mounts") or ()):
        if _absolute(mount["destination"]) == path:
            options = ",".join(mount.get("options") or ())
            return f"mounts: {path}, type {mount.get('type') or 'bind'}, options {options[:200] or 'none'}"
    return ""


def _absolute(path: str) -> str:
    return posixpath.normpath(f"/{path.lstrip('/')}")
