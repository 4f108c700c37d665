"""Annotations and arguments for bundles of containers of one pod."""

from __future__ import annotations

#: containerd's annotations (pkg/cri/annotations).
KIND, SANDBOX = "io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"
#: The arguments of a container that runs until it is killed.
FOREVER = ["/bin/sh", "-c", "while :; do sleep 3600; done"]


def role(name: str) -> dict[str, str]:
    """The annotations of a container of the pod "pod", which is also the name of the pod's first container."""
    return {KIND: "sandbox"} if name == "pod" else {KIND: "container", SANDBOX: "pod"}
