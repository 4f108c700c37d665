"""Minimal plans of sandboxes for tests, as the command line would create them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from hawse.plan.model import MachinePlan, SandboxPlan
from hawse.planner.devices.vfio import plug_steps, shape
from hawse.vfio.emulated import EmulatedGroup
from hawse.vfio.node import group_node
from hawse.vm.ports import plan_ports

EDU = EmulatedGroup(5, ("edu",))


def machine_plan(groups: Sequence[EmulatedGroup] = (), **changes: Any) -> MachinePlan:
    """A VM with 1 MiB whose share is 9p."""
    made = MachinePlan(
        qemu="/q", accel="tcg", memory_mib=1, cpus=1, kernel="/k", initrd="/i", kernel_append="", bridges=[],
        machine_properties=[], share="9p", virtiofsd=[], boot_seconds=20, device_seconds=4, template=None,
        share_address=plan_ports([shape(group) for group in groups]).share_address,
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


def sandbox_plan(
    machine: MachinePlan, *, bundle: str, groups: Sequence[EmulatedGroup] = (), **changes: Any
) -> SandboxPlan:
    """The plan of the sandbox c1 with these groups."""
    ports = plan_ports([shape(group) for group in groups])
    made = SandboxPlan(
        id="c1", bundle=bundle, rootfs=f"{bundle}/rootfs", oci_version="1.0.2", annotations={}, owner="",
        spec={"process": {"args": ["x"]}}, machine=machine, shares=[], hugepages=[], steps=[], binds=[],
        plugs=plug_steps(groups, ports.slots, owner="c1"),
        nodes=[group_node(group.number) for group in groups],
        ports=list(ports.ports), timeline="", network="", network_port=ports.network, sysctls={},
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)
