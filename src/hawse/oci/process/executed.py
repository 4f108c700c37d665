"""The process of an `exec`: the container's process with the changes of the options, as in runc (exec.go). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hawse.errors import UsageError
from hawse.json_text import Document
from hawse.oci.fields import review_process

_SETS = ("bounding", "effective", "permitted", "ambient")


@dataclass(frozen=True)
class Changes:
    """The options of `exec`; empty strings, empty tuples and False change nothing."""

    args: tuple[str, ...]
    terminal: bool = False
    cwd: str = ""
    env: tuple[str, ...] = ()
    user: str = ""
    groups: tuple[int, ...] = ()
    capabilities: tuple[str, ...] = ()
    no_new_privileges: bool = False


def change(process: Mapping[str, Any], changes: Changes) -> Document:
    """Return the new process; ``process`` is not changed. Raises :class:`UsageError` for invalid options."""
    changed, _ = review_process("exec", dict(process) | {"args": list(changes.args), "terminal": changes.terminal})
    changed.pop("consoleSize", None)
    if changes.cwd:
        changed["cwd"] = changes.cwd
    changed["env"] = [*(process.get("env") or ()), *changes.env]
    if changes.user or changes.groups:
        changed["user"] = _user(dict(process.get("user") or {}), changes)
    if changes.capabilities:
        changed["capabilities"] = _capabilities(process.get("capabilities") or {}, changes.capabilities)
    if changes.no_new_privileges:
        changed["noNewPrivileges"] = True
    return changed


def _user(user: Document, changes: Changes) -> Document:
    if changes.user:
        uid, colon, gid = changes.user.partition(":")
        if not (_is_id(uid) and (_is_id(gid) or not colon)):
            raise UsageError(f"exec: --user {changes.user[:80]!r} is not UID or UID:GID")
        user |= {"uid": int(uid)} | ({"gid": int(gid)} if gid else {})
    for group in changes.groups:
        if not _is_id(str(group)):
            raise UsageError(f"exec: --additional-gids {group} is not a group ID")
    if changes.groups:
        user["additionalGids"] = [*(user.get("additionalGids") or ()), *changes.groups]
    return user


def _capabilities(current: Mapping[str, Any], added: tuple[str, ...]) -> Document:
    for name in added:
        if not name.startswith("CAP_"):
            raise UsageError(f"exec: --cap {name[:80]!r} is not a capability", hint="write it as CAP_NET_ADMIN")
    return {**current} | {kind: list(dict.fromkeys([*(current.get(kind) or ()), *added])) for kind in _SETS}


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) < 2**32
