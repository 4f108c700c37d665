"""Containers in network namespaces of a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.bundles import make_bundle, write
from tests.support.netns import Namespace

#: busybox in the container.
BOX = "/bin/busybox"


def bundle_in(path: Path, script: str, network: str | None, **process: Any) -> str:
    """A bundle whose shell runs a script in the network namespace at a path, "" for a new one, None for the host's."""
    rights = ["CAP_NET_RAW", "CAP_NET_BIND_SERVICE", "CAP_KILL"]
    process = {"capabilities": dict.fromkeys(("bounding", "effective", "permitted"), rights)} | process
    spec = make_bundle(str(path), ["/bin/sh", "-c", script], **process)
    others = [namespace for namespace in spec["linux"]["namespaces"] if namespace["type"] != "network"]
    if network is not None:
        others.append({"type": "network"} | ({"path": network} if network else {}))
    spec["linux"]["namespaces"] = others
    write(str(path), spec)
    return str(path)


def is_clean(inside: Namespace, *links: str) -> bool:
    """Whether nothing of a sandbox is left in its network namespace.

    When its monitor was killed, the taps disappear with QEMU, a moment later.
    """
    return inside.links() == sorted(links) and inside.traffic_control() == ""
