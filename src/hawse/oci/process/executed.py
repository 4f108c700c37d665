"""A further process of a container: its own with what `exec` changes of it, as runc makes it (exec.go). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hawse.errors import UsageError
from hawse.oci.fields import review_process

_SETS = ("bounding", "effective", "permitted", "ambient")


@dataclass(frozen=True)
class Changes:
    """What the options of `exec` say; empty strings, tuples and False change nothing."""

    args: tuple[str, ...]
    terminal: bool = False
    cwd: str = ""
    env: tuple[str, ...] = ()
    user: str = ""
    groups: tuple[int, ...] = ()
    capabilities: tuple[str, ...] = ()
    no_new_privileges: bool = False


def change(process: Mapping[str, Any], changes: Changes) -> dict[str, Any]:
    """The new process; ``process`` stays as it is. Raises :class:`UsageError` for what makes no sense."""
    made, _ = review_process("exec", dict(process) | {"args": list(changes.args), "terminal": changes.terminal})
    made.pop("consoleSize", None)
    if changes.cwd:
        made["cwd"] = changes.cwd
    made["env"] = [*(process.get("env") or ()), *changes.env]
    if changes.user or changes.groups:
        made["user"] = _user(dict(process.get("user") or {}), changes)
    if changes.capabilities:
        made["capabilities"] = _capabilities(process.get("capabilities") or {}, changes.capabilities)
    if changes.no_new_privileges:
        made["noNewPrivileges"] = True
    return made


def _user(user: dict[str, Any], changes: Changes) -> dict[str, Any]:
    if changes.user:
        uid, colon, gid = changes.user.partition(":")
        if not (_is_id(uid) and (_is_id(gid) or not colon)):
            raise UsageError(f"exec: --user {changes.user[:80]!r} is not UID or UID:GID")
        user |= {"uid": int(uid)} | ({"gid": int(gid)} if gid else {})
    for group in changes.groups:
        if not _is_id(str(group)):
            raise UsageError(f"exec: --additional-gids {group} is no group's number")
    if changes.groups:
        user["additionalGids"] = [*(user.get("additionalGids") or ()), *changes.groups]
    return user


def _capabilities(have: Mapping[str, Any], added: tuple[str, ...]) -> dict[str, Any]:
    for name in added:
        if not name.startswith("CAP_"):
            raise UsageError(f"exec: --cap {name[:80]!r} is no capability", hint="write it as CAP_NET_ADMIN")
    made = {**have} | {kind: [*(have.get(kind) or ()), *added] for kind in _SETS}
    return {kind: list(dict.fromkeys(names or ())) for kind, names in made.items()}


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) < 2**32
