"""Emulated VFIO groups, and the plans of a sandbox and of an attachment that has them."""

from __future__ import annotations

from hawse.plan.model import Attachment, SandboxPlan
from hawse.planner.devices.plugs import plug_steps, shape
from hawse.vfio.emulated import EmulatedGroup
from hawse.vfio.node import group_node
from hawse.vm.ports import Port, place
from tests.support.plans import machine_plan, sandbox_plan

BOUND = {"group": 3, "major": 511, "minor": 0, "bars": []}
EDU, NICS = EmulatedGroup(5, ("edu",)), EmulatedGroup(7, ("e1000e", "e1000e"))


def plan(*groups: EmulatedGroup, seconds: float = 1.0) -> SandboxPlan:
    """The plan of the sandbox c1 with a VM of 512 MiB. ``seconds``: the time for a device."""
    machine = machine_plan(groups, memory_mib=512, boot_seconds=1, device_seconds=seconds)
    return sandbox_plan(machine, bundle="/b", groups=groups, spec={})


def attachment(group: EmulatedGroup, spares: list[Port]) -> Attachment:
    steps = plug_steps([group], place(shape(group), spares), owner="c1")
    return Attachment(plugs=steps, nodes=[group_node(group.number)], mode=0o660, uid=1, gid=2)
