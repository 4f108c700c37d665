"""The root port of a device reports an error by PCI Express AER while a container uses the device.

The kernel of the host tells QEMU, which cannot pass the error to its guest: it stops the VM, and does not exit.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.lab.host import Lab
from tests.lab.steps import (
    LONE_NIC,
    hawse,
    make_bundle,
    make_shell_bundle,
    prove_unchanged,
    read_json,
    snapshot,
)
from tests.support.patience import wait_until

pytestmark = pytest.mark.lab


#: QEMU's id of the root port above the NIC.
PORT = f"rp{int(LONE_NIC.split(':')[1], 16) - 1}"


def state_of(lab: Lab) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(hawse(lab, "state", "errors").output)
    return state


def test_uncorrectable_error_of_a_device_ends_its_sandbox_with_the_reason(lab: Lab, probe: str) -> None:
    bundle = make_shell_bundle(lab, "errors", LONE_NIC, probe=probe, annotations={})
    again = make_bundle(lab, "works", LONE_NIC)
    before = snapshot(lab)
    started = hawse(lab, "run", "--detach", "--bundle", bundle, "errors")
    assert started.code == 0, started

    # A completion timeout. QEMU's NICs cannot report errors, since their Device Control register is read-only.
    assert lab.control(f"pcie_aer_inject_error {PORT} COMP_TIME").startswith("OK")

    wait_until(lambda: state_of(lab)["status"] == "stopped", seconds=60, seen=lambda: lab.run(["dmesg"]).output[-3000:])
    reason = f"QEMU stopped the virtual machine: {LONE_NIC}, or a port above it, reported an uncorrectable error ["
    assert state_of(lab)["failure"].startswith(reason)
    deleted = hawse(lab, "delete", "errors")
    assert (deleted.code, deleted.errors) == (0, "")
    prove_unchanged(lab, before)

    ran = hawse(lab, "run", "--bundle", again, "works")
    assert read_json(ran.output)["passed"] is True, ran
