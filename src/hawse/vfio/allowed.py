"""Check that ``devices.allow`` in the configuration permits passing the functions of a group. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from hawse.errors import DeviceError
from hawse.patterns import matches
from hawse.vfio.groups import Function, HostGroup


def check_allowed(groups: Sequence[HostGroup], patterns: Sequence[str]) -> None:
    """Raise :class:`DeviceError` for the first function that no pattern matches.

    Every function of a group has to match, because a group is passed as a whole.
    """
    for group in groups:
        for function in group.functions:
            if not any(_matches(function, pattern) for pattern in patterns):
                raise DeviceError(
                    f"group {group.number} cannot be passed: {function.address} ({_identity(function)}) is not in the "
                    "list of allowed devices",
                    hint="an administrator can add it to devices.allow in the configuration",
                )


def _matches(function: Function, pattern: str) -> bool:
    return matches(pattern, address=function.address, identity=_identity(function), driver=function.driver)


def _identity(function: Function) -> str:
    return f"{function.vendor:04x}:{function.device:04x}"
