"""docs/errors.md, generated from the situations: ``python -m tests.errors.page > docs/errors.md``."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from hawse.errors import HawseError
from tests.errors import bundles, host_devices, installation, machine, mounts, nodes, sandboxes
from tests.errors.situation import Act
from tests.support.sysfs import FakeSysfs

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
#: The page's sections in their order: each situation by its name.
SECTIONS: dict[str, dict[str, Act]] = {
    "VFIO devices of the host": host_devices.SITUATIONS,
    "The VM and its devices": machine.SITUATIONS,
    "Fields of the bundle": bundles.SITUATIONS,
    "Device nodes and device rules": nodes.SITUATIONS,
    "Mounts": mounts.SITUATIONS,
    "Pods, cgroups and SELinux": sandboxes.SITUATIONS,
    "Configuration, guest image, cache and installation": installation.SITUATIONS,
}
SITUATIONS = {name: act for section in SECTIONS.values() for name, act in section.items()}


def error_of(situation: Act) -> str:
    """Reproduce a situation; returns the line of its error, or its warning, without the fake host's path."""
    with tempfile.TemporaryDirectory() as root:
        try:
            answer = situation(FakeSysfs(root))
        except HawseError as error:
            answer = error.sentence()
        assert isinstance(answer, str), "the situation caused neither an error nor a warning"
        return answer.replace(root, "")


def page() -> str:
    """Return the whole page."""
    lines = [
        "# Errors and warnings",
        "",
        "Each line names what failed, on which device or in which field, and the remedy in brackets. When an error is",
        "printed, nothing was changed, or every change was undone. `tests/errors` reproduces each one.",
    ]
    for title, section in SECTIONS.items():
        lines += ["", f"## {title}"]
        for name, situation in section.items():
            lines += ["", f"**{name}.**", "", f"    hawse: {error_of(situation)}"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
