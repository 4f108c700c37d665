"""The device map: a file that shows a container which device in the guest is which device of the host."""

from __future__ import annotations

import json
from collections.abc import Sequence

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from hawse.json_text import Document

#: It is below /dev, a file system of the container itself, so that nothing remains in the container's root file system.
DEVICES_FILE = "/dev/hawse/devices.json"


def with_map(spec: Document, devices: Sequence[Document], path: str) -> Document:
    """Write the map to ``path``. Returns the specification with a bind of that file to DEVICES_FILE."""
    write_map(path, devices)
    mount = {"destination": DEVICES_FILE, "type": "bind", "source": path, "options": ["bind", "ro", "nosuid", "noexec"]}
    return {**spec, "mounts": [*(spec.get("mounts") or []), mount]}


def write_map(path: str, devices: Sequence[Document]) -> None:
    """Replace the content of the map, not the file itself: the file is bound to DEVICES_FILE in the container."""
    with open(path, "w") as file:
        file.write(map_text(devices))


def map_text(devices: Sequence[Document]) -> str:
    """The content of the map."""
    return json.dumps(devices, indent=2) + "\n"
