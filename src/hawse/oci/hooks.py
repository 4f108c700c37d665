"""The hooks of a specification (config.md, POSIX-platform Hooks): which run on the host, which in the guest. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from hawse.errors import ConfigError
from hawse.oci.types import Hook

#: In the order of their moments, of which the first three are before the container is made.
CREATION = ("prestart", "createRuntime", "createContainer")
HOST = (*CREATION, "poststart", "poststop")
#: It runs in the container, so its program is one of the container's.
GUEST = "startContainer"
KINDS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")

Hooks = dict[str, list[dict[str, Any]]]


def split(name: str, hooks: Mapping[str, Sequence[Hook] | None]) -> tuple[Hooks, Hooks]:
    """Those of the host and those of the guest, by kind; kinds that are empty or unknown are left out.

    ``name`` is the configuration's. Raises :class:`ConfigError` naming a hook that makes no sense.
    """
    for kind in KINDS:
        for index, hook in enumerate(hooks.get(kind) or ()):
            where = f"{name}: hooks.{kind}[{index}]"
            if not hook.path.startswith("/"):
                raise ConfigError(f"{where}.path: {hook.path[:200]!r} is not absolute", hint="begin it with /")
            if hook.timeout is not None and hook.timeout <= 0:
                raise ConfigError(f"{where}.timeout: {hook.timeout} is not greater than 0", hint="it is in seconds")
    found = {kind: [msgspec.to_builtins(hook) for hook in hooks.get(kind) or ()] for kind in KINDS}
    host = {kind: found[kind] for kind in HOST if found[kind]}
    return host, {GUEST: found[GUEST]} if found[GUEST] else {}
