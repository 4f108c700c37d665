"""Pods: which container is a sandbox's first, and which one joins a sandbox that is there. Standard library only.

Engines say it by annotations: containerd's CRI by its own (internal/cri/annotations/annotations.go), CRI-O and Podman
by others (containers/podman pkg/annotations/annotations.go).
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from hawse.errors import ConfigError

TYPE_CHECKING = False  # typing's import would cost a start a hundredth of its time
if TYPE_CHECKING:
    from typing import Any

SINGLE, SANDBOX, CONTAINER = "single", "sandbox", "container"
#: The annotation that says which of the two it is, and the one with the sandbox's id.
KEYS = (
    ("io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"),
    ("io.kubernetes.cri-o.ContainerType", "io.kubernetes.cri-o.SandboxID"),
)
_MAX_BYTES = 4 * 1024 * 1024


def read_role(annotations: Mapping[str, Any]) -> tuple[str, str]:
    """SINGLE, SANDBOX or CONTAINER, and for the last the id of its sandbox. Raises :class:`ConfigError`."""
    for kind_key, sandbox_key in KEYS:
        kind = annotations.get(kind_key)
        if kind is None:
            continue
        if kind == SANDBOX:
            return SANDBOX, ""
        if kind != CONTAINER:
            raise ConfigError(
                f"annotations: {kind_key}: {str(kind)[:80]!r} is unknown", hint=f"it is {SANDBOX} or {CONTAINER}"
            )
        sandbox = annotations.get(sandbox_key)
        if not isinstance(sandbox, str) or not sandbox:
            raise ConfigError(f"annotations: {sandbox_key} is missing", hint="it names the sandbox to be joined")
        return CONTAINER, sandbox
    return SINGLE, ""


def role_of(bundle: str) -> tuple[str, str]:
    """:func:`read_role` of a bundle. One that cannot be read is SINGLE: whoever reads all of it tells why."""
    try:
        with open(f"{bundle}/config.json", "rb") as file:
            document = json.loads(file.read(_MAX_BYTES + 1))
        annotations = document.get("annotations") or {}
    except (OSError, ValueError, AttributeError):
        return SINGLE, ""
    return read_role(annotations) if isinstance(annotations, dict) else (SINGLE, "")
