"""Misc devices of the guest kernel, whose minors each kernel chooses itself."""

from __future__ import annotations

from hawse.agent.devices.disks import numbers_in


def misc_numbers(name: str, *, root: str = "") -> dict[str, int] | None:
    """The numbers of a misc device; None if the guest kernel does not have it."""
    return numbers_in(f"{root}/sys/class/misc/{name}/dev")
