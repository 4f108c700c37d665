"""Split hooks into those of the host and those of the guest (config.md, POSIX-platform Hooks). Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from hawse.errors import ConfigError
from hawse.json_text import Document
from hawse.oci.types import Hook

#: In the order in which they run. The first three run before the container is created.
CREATION = ("prestart", "createRuntime", "createContainer")
HOST = (*CREATION, "poststart", "poststop")
#: It runs in the container, so its program is a file of the container.
GUEST = "startContainer"
KINDS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")

Hooks = dict[str, list[Document]]


def split(name: str, hooks: Mapping[str, Sequence[Hook] | None]) -> tuple[Hooks, Hooks]:
    """Return the hooks of the host and those of the guest, by kind, without empty and unknown kinds.

    ``name`` is the document's name for errors. Raises :class:`ConfigError` naming an invalid hook.
    """
    for kind in KINDS:
        for index, hook in enumerate(hooks.get(kind) or ()):
            where = f"{name}: hooks.{kind}[{index}]"
            if not hook.path.startswith("/"):
                raise ConfigError(f"{where}.path: {hook.path[:200]!r} is not absolute", hint="begin it with /")
            if hook.timeout is not None and hook.timeout <= 0:
                raise ConfigError(f"{where}.timeout: {hook.timeout} is not greater than 0", hint="it is in seconds")
    by_kind = {kind: [msgspec.to_builtins(hook) for hook in hooks.get(kind) or ()] for kind in KINDS}
    host = {kind: by_kind[kind] for kind in HOST if by_kind[kind]}
    return host, {GUEST: by_kind[GUEST]} if by_kind[GUEST] else {}
