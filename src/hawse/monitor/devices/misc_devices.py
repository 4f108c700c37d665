"""Misc devices whose minor number each kernel chooses: the guest is asked for its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hawse.errors import DeviceError, VmError

if TYPE_CHECKING:
    from hawse.monitor.agent.guest_link import GuestLink

_SECONDS = 60.0
_MAX_NUMBER = 2**20


async def named(wanted: Sequence[tuple[int, int, str]], link: GuestLink) -> dict[tuple[int, int], tuple[int, int]]:
    """The guest's numbers of devices, which are given as the host's numbers and their name, by the host's numbers.

    Raises :class:`DeviceError` naming a device that the guest's kernel has not.
    """
    if not wanted:
        return {}
    answer = await link.call("misc_numbers", {"names": [name for *_, name in wanted]}, seconds=_SECONDS)
    found = answer if isinstance(answer, list) and len(answer) == len(wanted) else [()] * len(wanted)
    places = {}
    for (major, minor, name), numbers in zip(wanted, found, strict=True):
        if numbers is None:
            raise DeviceError(
                f"linux.devices: {name} ({major}:{minor}): the guest's kernel has no such device",
                hint="remove it, or use a kernel that has it: image.kernel in the configuration",
            )
        if not isinstance(numbers, list) or len(numbers) != 2 or not all(map(_is_number, numbers)):
            raise VmError(
                f"the guest reports no usable numbers of {name}", hint="it is not to be trusted: delete the container"
            )
        places[major, minor] = (numbers[0], numbers[1])
    return places


def _is_number(number: object) -> bool:
    return type(number) is int and 0 <= number < _MAX_NUMBER
