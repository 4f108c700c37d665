"""Names of interfaces of functions that drivers of the guest kernel use."""

from __future__ import annotations

import pytest

from hawse.agent.devices.guest_drivers import interface_name


@pytest.mark.parametrize(
    ("address", "port", "multifunction", "name"),
    [
        ("0000:02:00.0", 0, False, "enp2s0"),
        ("0000:1f:1a.0", 0, False, "enp31s26"),
        ("0000:02:00.0", 0, True, "enp2s0f0"),
        ("0000:02:00.3", 0, False, "enp2s0f3"),
        ("0000:02:00.0", 1, False, "enp2s0d1"),
        ("0001:02:00.0", 0, False, "enP1p2s0"),
    ],
)
def test_interface_is_found_by_the_address_of_its_function(
    address: str, port: int, *, multifunction: bool, name: str
) -> None:
    assert interface_name(address, port, multifunction=multifunction) == name
