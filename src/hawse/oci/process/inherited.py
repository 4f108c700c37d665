"""Attributes that a process inherits from the caller of `create` or `exec`, unless its specification names them. Pure.

runc's processes inherit them through fork(2). In a virtual machine they become part of the guest's specification.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from hawse.json_text import Document

#: The greatest number of open files that a kernel accepts (Linux fs/file.c, sysctl_nr_open_max, on 64 bits). The guest
#: allows it (:func:`hawse.agent.machine.boot.raise_limits`); a hard limit above it is EPERM (kernel/sys.c,
#: do_prlimit()).
MOST_FILES = (2**31 - 1) & -64
_FILES = "RLIMIT_NOFILE"


class Inherited(msgspec.Struct, frozen=True, kw_only=True):
    """The caller's resource limits as (soft, hard) by name, its oom_score_adj and its umask."""

    rlimits: dict[str, tuple[int, int]] = {}
    oom_score_adj: int = 0
    umask: int = 0o022


def inherit(process: Mapping[str, Any], caller: Inherited) -> Document:
    """Return the process with the inherited attributes; attributes that it sets are kept."""
    limits = list(process.get("rlimits") or ())
    named = {limit["type"] for limit in limits}
    for name, (soft, hard) in caller.rlimits.items():
        if name not in named:
            most = MOST_FILES if name == _FILES else hard
            limits.append({"type": name, "soft": min(soft, most), "hard": min(hard, most)})
    inheriting = {**process} | ({"rlimits": limits} if limits else {})
    if caller.oom_score_adj and inheriting.get("oomScoreAdj") is None:
        inheriting["oomScoreAdj"] = caller.oom_score_adj
    return inheriting


def inherit_exec(process: Mapping[str, Any], caller: Inherited, *, container: Mapping[str, Any]) -> Document:
    """Like :func:`inherit`, for the process of an `exec`; ``container`` is the first process of its container.

    Limits are those of the caller of `exec`, not the container's. The umask is the caller's if the container sets
    none (runc libcontainer/setns_init_linux.go). The default for the first process is 022 (standard_init_linux.go).
    """
    user = process.get("user") or {}
    umask = user.get("umask")
    if umask is None:
        umask = (container.get("user") or {}).get("umask")
    return inherit(process, caller) | {"user": {**user, "umask": caller.umask if umask is None else umask}}
