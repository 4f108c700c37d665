"""Emulated VFIO groups, and the plans of a sandbox and of an attachment that has them."""

from __future__ import annotations

from hawse.plan.model import Attachment, MachinePlan, SandboxPlan
from hawse.planner.devices.vfio import plug_steps, shape
from hawse.vfio.emulated import EmulatedGroup
from hawse.vfio.node import group_node
from hawse.vm.ports import Port, place, plan_ports

BOUND = {"group": 3, "major": 511, "minor": 0, "bars": []}
EDU, NICS = EmulatedGroup(5, ("edu",)), EmulatedGroup(7, ("e1000e", "e1000e"))


def plan(*groups: EmulatedGroup, seconds: float = 1.0) -> SandboxPlan:
    ports = plan_ports([shape(group) for group in groups])
    machine = MachinePlan(
        qemu="/q", accel="tcg", memory_mib=512, cpus=1, kernel="/k", initrd="/i", kernel_append="", bridges=[],
        machine_properties=[], share="9p", virtiofsd=[], boot_seconds=1, device_seconds=seconds, template=None,
        share_address=ports.share_address,
    )  # fmt: skip
    return SandboxPlan(
        id="c1", bundle="/b", rootfs="/b/rootfs", oci_version="1.0.2", annotations={}, owner="", spec={},
        machine=machine, shares=[], plugs=plug_steps(groups, ports.slots, owner="c1"), hugepages=[], steps=[],
        nodes=[group_node(group.number) for group in groups],
        ports=list(ports.ports), binds=[], timeline="", network="", network_port=ports.network, sysctls={},
    )  # fmt: skip


def wanted(group: EmulatedGroup, spares: list[Port]) -> Attachment:
    steps = plug_steps([group], place(shape(group), spares), owner="c1")
    return Attachment(plugs=steps, nodes=[group_node(group.number)], mode=0o660, uid=1, gid=2)
