"""The file by which a container reads which device of the host is which in the guest."""

from __future__ import annotations

import json
from collections.abc import Sequence

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from hawse.json_text import Document

#: Below /dev, which is a file system of the container: nothing is left in its root file system.
DEVICES_FILE = "/dev/hawse/devices.json"


def with_map(spec: Document, devices: Sequence[Document], path: str) -> Document:
    """The specification with the file at ``path``, which is written here, bound to DEVICES_FILE."""
    write_map(path, devices)
    mount = {"destination": DEVICES_FILE, "type": "bind", "source": path, "options": ["bind", "ro", "nosuid", "noexec"]}
    return {**spec, "mounts": [*(spec.get("mounts") or []), mount]}


def write_map(path: str, devices: Sequence[Document]) -> None:
    """Replace the content of the file that a container sees at DEVICES_FILE: the file itself is bound there."""
    with open(path, "w") as file:
        file.write(map_text(devices))


def map_text(devices: Sequence[Document]) -> str:
    """The content of that file."""
    return json.dumps(devices, indent=2) + "\n"
