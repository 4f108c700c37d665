"""Which functions of the host may be passed at all: patterns of ``devices.allow``. Pure.

A pattern is that of a PCI address (``0000:3b:*``), of vendor and device in hexadecimal (``8086:10d3``, ``10de:*``), or
``driver:`` and that of a driver's name. ``*``, ``?`` and ``[...]`` are fnmatch's.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from hawse.errors import DeviceError
from hawse.vfio.groups import Function, HostGroup

_DRIVER = "driver:"


def check_allowed(groups: Sequence[HostGroup], patterns: Sequence[str]) -> None:
    """Raise :class:`DeviceError` for a function that no pattern matches: a group is passed as a whole."""
    for group in groups:
        for function in group.functions:
            if not any(_matches(function, pattern) for pattern in patterns):
                raise DeviceError(
                    f"group {group.number} cannot be passed: {function.address} "
                    f"({function.vendor:04x}:{function.device:04x}) is not among the devices that this host allows",
                    hint="an administrator allows it by devices.allow in the configuration",
                )


def _matches(function: Function, pattern: str) -> bool:
    if pattern.startswith(_DRIVER):
        return fnmatchcase(function.driver, pattern.removeprefix(_DRIVER))
    names = (function.address, f"{function.vendor:04x}:{function.device:04x}")
    return any(fnmatchcase(name, pattern.lower()) for name in names)
