"""Pods: whether a container is the first of a sandbox or joins an existing sandbox. Standard library only.

Engines pass this in annotations. containerd's CRI (internal/cri/annotations/annotations.go) uses other names than CRI-O
and Podman (containers/podman pkg/annotations/annotations.go). Since version 5, Podman annotates only the containers
that join a sandbox, and not the first one: hawse recognizes that by its program, which is the same for every pod
(containers/common pkg/config/default.go, DefaultInfraImage and its command).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hawse.errors import ConfigError
from hawse.json_text import parse

TYPE_CHECKING = False  # typing's import would cost a start a hundredth of its time
if TYPE_CHECKING:
    from typing import Any

SINGLE, SANDBOX, CONTAINER = "single", "sandbox", "container"
#: Per engine: the annotation with the container's type (sandbox or container), and the one with the sandbox's id.
KEYS = (
    ("io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"),
    ("io.kubernetes.cri-o.ContainerType", "io.kubernetes.cri-o.SandboxID"),
)
_PODMANS = "io.kubernetes.cri-o.SandboxID"
_MANAGER = ("io.container.manager", "libpod")
_PODMANS_PAUSE = ["/catatonit", "-P"]
_MAX_BYTES = 4 * 1024 * 1024


def read_role(annotations: Mapping[str, Any], args: Sequence[str] = ()) -> tuple[str, str]:
    """Return SINGLE, SANDBOX or CONTAINER, and for CONTAINER the id of the sandbox ("" for the others).

    ``args`` are the arguments of the container's process. Raises :class:`ConfigError`.
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
                f"annotations: {kind_key}: {str(kind)[:80]!r} is unknown", hint=f"use {SANDBOX} or {CONTAINER}"
            )
        sandbox = annotations.get(sandbox_key)
        if not isinstance(sandbox, str) or not sandbox:
            raise ConfigError(
                f"annotations: {sandbox_key} is missing",
                hint="set it to the id of the sandbox that the container joins",
            )
        return CONTAINER, sandbox
    key, manager = _MANAGER
    if annotations.get(key) == manager and list(args) == _PODMANS_PAUSE:
        return SANDBOX, ""
    return SINGLE, ""


def is_kubelets(annotations: Mapping[str, Any]) -> bool:
    """Whether a kubelet requested the container from an engine. False for containers of Podman's pods."""
    key, manager = _MANAGER
    return any(kind in annotations for kind, _ in KEYS) and annotations.get(key) != manager


def role_of(bundle: str) -> tuple[str, str]:
    """Return :func:`read_role` of a bundle; SINGLE if it cannot be read: the later full check reports the error."""
    try:
        with open(f"{bundle}/config.json", "rb") as file:
            document = parse(file.read(_MAX_BYTES + 1))
        annotations = document.get("annotations") or {}
        args = (document.get("process") or {}).get("args") or []
        readable = isinstance(annotations, dict) and isinstance(args, list)
    except (OSError, ValueError, AttributeError):
        return SINGLE, ""
    return read_role(annotations, args) if readable else (SINGLE, "")
