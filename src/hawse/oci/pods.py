"""Pods: which container is a sandbox's first, and which one joins a sandbox that is there. Standard library only.

Engines say it by annotations: containerd's CRI by its own (internal/cri/annotations/annotations.go), CRI-O and Podman
by others (containers/podman pkg/annotations/annotations.go). From version 5 on Podman says of a container which sandbox
it is to join, and nothing of the sandbox: that is told by its program, the same for every pod (containers/common
pkg/config/default.go, DefaultInfraImage and its command).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hawse.errors import ConfigError
from hawse.json_text import parse

TYPE_CHECKING = False  # typing's import would cost a start a hundredth of its time
if TYPE_CHECKING:
    from typing import Any

SINGLE, SANDBOX, CONTAINER = "single", "sandbox", "container"
#: The annotation that says which of the two it is, and the one with the sandbox's id.
KEYS = (
    ("io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"),
    ("io.kubernetes.cri-o.ContainerType", "io.kubernetes.cri-o.SandboxID"),
)
_PODMANS = "io.kubernetes.cri-o.SandboxID"
_MANAGER = ("io.container.manager", "libpod")
_PODMANS_PAUSE = ["/catatonit", "-P"]
_MAX_BYTES = 4 * 1024 * 1024


def read_role(annotations: Mapping[str, Any], args: Sequence[str] = ()) -> tuple[str, str]:
    """SINGLE, SANDBOX or CONTAINER, and for the last the id of its sandbox. Raises :class:`ConfigError`.

    ``args`` are those of the container's process.
    """
    for kind_key, sandbox_key in KEYS:
        kind = annotations.get(kind_key)
        if kind is None and not (sandbox_key == _PODMANS and _PODMANS in annotations):
            continue
        kind = kind or CONTAINER
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
    key, manager = _MANAGER
    if annotations.get(key) == manager and list(args) == _PODMANS_PAUSE:
        return SANDBOX, ""
    return SINGLE, ""


def is_kubelets(annotations: Mapping[str, Any]) -> bool:
    """Whether the container is one that a kubelet asked an engine for, and not one of a pod of Podman's."""
    key, manager = _MANAGER
    return any(kind in annotations for kind, _ in KEYS) and annotations.get(key) != manager


def role_of(bundle: str) -> tuple[str, str]:
    """:func:`read_role` of a bundle. One that cannot be read is SINGLE: whoever reads all of it tells why."""
    try:
        with open(f"{bundle}/config.json", "rb") as file:
            document = parse(file.read(_MAX_BYTES + 1))
        annotations = document.get("annotations") or {}
        args = (document.get("process") or {}).get("args") or []
        readable = isinstance(annotations, dict) and isinstance(args, list)
    except (OSError, ValueError, AttributeError):
        return SINGLE, ""
    return read_role(annotations, args) if readable else (SINGLE, "")
