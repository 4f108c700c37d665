"""Misc devices, whose minor number each kernel chooses: ask the guest for its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hawse.errors import DeviceError, VmError
from hawse.monitor.agent.calls import MiscNumbers

if TYPE_CHECKING:
    from hawse.monitor.agent.guest_link import GuestLink

_SECONDS = 60.0


async def guest_numbers(
    devices: Sequence[tuple[int, int, str]], link: GuestLink
) -> dict[tuple[int, int], tuple[int, int]]:
    """The guest's numbers of misc devices, by the host's numbers. ``devices`` are (major, minor, name) on the host.

    Raises :class:`DeviceError` naming a device that is missing in the guest kernel.
    """
    if not devices:
        return {}
    answer = await link.call(MiscNumbers(names=[name for *_, name in devices]), seconds=_SECONDS)
    if len(answer) != len(devices):
        raise VmError(
            f"the guest reports {len(answer)} numbers of {len(devices)} misc devices",
            hint="do not trust the guest: delete the container",
        )
    places = {}
    for (major, minor, name), numbers in zip(devices, answer, strict=True):
        if numbers is None:
            raise DeviceError(
                f"linux.devices: {name} ({major}:{minor}): the guest's kernel has no such device",
                hint="remove it, or use a kernel that has it: image.kernel in the configuration",
            )
        places[major, minor] = (numbers.major, numbers.minor)
    return places
