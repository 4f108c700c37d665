"""Emulated groups: the configuration says that group 5 is a device model of QEMU's.

Everything from the guest's PCI bus upward is then real, on a host without an IOMMU or without the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hawse.errors import ConfigError

#: Model → has an I/O BAR. Those that QEMU 7.2 or 10.0 has and that were seen to work through vfio-pci in a guest.
MODELS = {"edu": False, "e1000e": True, "e1000": True, "igb": True, "nvme": False, "pci-testdev": True}
_MAX_FUNCTIONS = 8


@dataclass(frozen=True)
class EmulatedGroup:
    """A group by its number, with the QEMU model of each of its functions."""

    number: int
    models: tuple[str, ...]


def read_table(table: Mapping[str, Sequence[str]]) -> dict[int, EmulatedGroup]:
    """The groups of the configuration's section. Raises :class:`ConfigError` naming the entry."""
    groups = {}
    for key, models in table.items():
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            raise ConfigError(
                f"configuration: emulated.{key[:40]}: the key is not a group number", hint='write it as 5 = ["edu"]'
            )
        if not 1 <= len(models) <= _MAX_FUNCTIONS:
            raise ConfigError(
                f"configuration: emulated.{key}: {len(models)} functions, from 1 to {_MAX_FUNCTIONS} fit",
                hint="name one model a function",
            )
        for model in models:
            if model not in MODELS:
                raise ConfigError(
                    f"configuration: emulated.{key}: unknown device {model[:40]!r}", hint=f"known: {', '.join(MODELS)}"
                )
        groups[int(key)] = EmulatedGroup(int(key), tuple(models))
    return groups
