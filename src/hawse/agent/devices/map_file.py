"""The file by which a container reads which device of the host is which in the guest."""

from __future__ import annotations

import json
from collections.abc import Sequence

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from typing import Any

#: Below /dev, which is a file system of the container's own: nothing of this is left in its root file system.
DEVICES_FILE = "/dev/hawse/devices.json"


def show(spec: dict[str, Any], devices: Sequence[dict[str, Any]], path: str) -> None:
    """Write which device of the host is which in the guest to a file, and have it bound to DEVICES_FILE."""
    write_map(path, devices)
    mount = {"destination": DEVICES_FILE, "type": "bind", "source": path, "options": ["bind", "ro", "nosuid", "noexec"]}
    spec["mounts"] = [*(spec.get("mounts") or []), mount]


def write_map(path: str, devices: Sequence[dict[str, Any]]) -> None:
    """Replace the content of the file that a container sees at DEVICES_FILE: the file itself is bound there."""
    with open(path, "w") as file:
        file.write(map_text(devices))


def map_text(devices: Sequence[dict[str, Any]]) -> str:
    """The content of that file."""
    return json.dumps(devices, indent=2) + "\n"
