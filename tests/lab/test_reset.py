"""Resets that a program requests from VFIO, under runc and under hawse: of the function, and of the whole bus."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.host import Lab
from tests.lab.steps import EDU, LARGE, LONE_NIC, NVME, PAIR, configure, group_of, hawse, make_shell_bundle, read_json

pytestmark = pytest.mark.lab

DEVICES = [EDU, PAIR[0], LONE_NIC, NVME, LARGE]
#: VFIO_DEVICE_FLAGS_RESET of Linux include/uapi/linux/vfio.h.
RESET = 1


@pytest.fixture(scope="module")
def bundle(lab: Lab, probe: str) -> str:
    path = make_shell_bundle(lab, "reset", *DEVICES, probe=probe, annotations={})
    configure(lab)
    return path


@pytest.fixture(scope="module")
def under_runc(lab: Lab, bundle: str) -> dict[str, dict[str, Any]]:
    """The report of the probe under runc, by device."""
    assert lab.run(["sh", "-c", f"runc run --detach --bundle {bundle} reset-runc >/dev/null 2>&1"]).code == 0
    try:
        return {
            address: read_json(lab.run(["runc", "exec", "reset-runc", "/bin/sh", "-c", command(lab, address)]).output)
            for address in DEVICES
        }
    finally:
        lab.run(["runc", "delete", "--force", "reset-runc"])


@pytest.fixture(scope="module")
def container(lab: Lab, bundle: str, under_runc: dict[str, Any]) -> Iterator[str]:
    """The name of a container with all of these devices under hawse, created after runc has released them."""
    assert under_runc
    started = hawse(lab, "run", "--detach", "--bundle", bundle, "reset")
    assert started.code == 0, started
    yield "reset"
    assert hawse(lab, "delete", "--force", "reset").code == 0


def command(lab: Lab, address: str) -> str:
    return f"PROBE_RESET=1 probe /dev/vfio/{group_of(lab, address)}"


@pytest.mark.parametrize("address", DEVICES)
def test_program_can_reset_its_device_and_its_bus(
    lab: Lab, under_runc: dict[str, dict[str, Any]], container: str, address: str
) -> None:
    expected = under_runc[address]
    assert expected["passed"] is True, json.dumps(expected)
    ran = hawse(lab, "exec", container, "/bin/sh", "-c", command(lab, address))
    seen = read_json(ran.output)
    assert seen["passed"] is True, json.dumps(seen)
    # If a group has several functions, QEMU resets each separately (hw/vfio/pci.c, vfio_pci_reset()). The method
    # of an e1000e is power management, which leaves the registers of QEMU's e1000e unchanged.
    assert seen["cleared_by_bus_reset"] is (address != PAIR[0])
    assert expected["cleared_by_bus_reset"] is True
    assert seen["device_flags"] & RESET
    assert seen["device_flags"] == expected["device_flags"]
    assert seen["affected_functions"] == expected["affected_functions"]
