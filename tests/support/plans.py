"""Minimal plans of sandboxes for tests, as the command line would create them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import msgspec

from hawse.plan.model import ContainerPlan, MachinePlan, SandboxPlan
from hawse.planner.devices.plugs import plug_steps, shape
from hawse.vfio.emulated import EmulatedGroup
from hawse.vfio.node import group_node
from hawse.vm.arguments import VmShape
from hawse.vm.ports import plan_ports

EDU = EmulatedGroup(5, ("edu",))


def machine_plan(groups: Sequence[EmulatedGroup] = (), **changes: Any) -> MachinePlan:
    """A VM with 1 MiB whose share is 9p. ``changes`` are fields of the plan or of its shape."""
    fields = {field.name for field in dataclasses.fields(VmShape)}
    vm = VmShape(
        qemu="/q", accel="tcg", memory_mib=1, cpus=1, kernel="/k", initrd="/i", kernel_append="", bridges=[],
        share="9p",
    )  # fmt: skip
    machine = MachinePlan(
        shape=dataclasses.replace(vm, **{name: changes.pop(name) for name in fields & changes.keys()}),
        virtiofsd=[], boot_seconds=20, device_seconds=4, template=None,
        share_address=plan_ports([shape(group) for group in groups]).share_address,
    )  # fmt: skip
    return msgspec.structs.replace(machine, **changes)


def container_plan(*, bundle: str, groups: Sequence[EmulatedGroup] = (), **changes: Any) -> ContainerPlan:
    """The plan of the container c1 with these groups."""
    ports = plan_ports([shape(group) for group in groups])
    plan = ContainerPlan(
        id="c1", bundle=bundle, rootfs=f"{bundle}/rootfs", oci_version="1.0.2", annotations={}, owner="",
        spec={"process": {"args": ["x"]}}, shares=[], hugepages=[], binds=[], network="", sysctls={},
        plugs=plug_steps(groups, ports.slots, owner="c1"), nodes=[group_node(group.number) for group in groups],
    )  # fmt: skip
    return msgspec.structs.replace(plan, **changes)


def sandbox_plan(
    machine: MachinePlan, *, bundle: str, groups: Sequence[EmulatedGroup] = (), **changes: Any
) -> SandboxPlan:
    """The plan of the sandbox c1 with these groups. ``changes`` are fields of the plan or of its container."""
    ports = plan_ports([shape(group) for group in groups])
    plan = SandboxPlan(
        container=container_plan(bundle=bundle, groups=groups), machine=machine, steps=[],
        ports=list(ports.ports), timeline="", network_port=ports.network,
    )  # fmt: skip
    return changed(plan, **changes)


def changed(plan: SandboxPlan, **changes: Any) -> SandboxPlan:
    """The plan with other fields of its own or of its first container."""
    own = {name: changes.pop(name) for name in SandboxPlan.__struct_fields__ if name in changes}
    native = changes.get("native", {})
    nodes = [node for node in plan.container.nodes if node.host_group not in native]  # as the planner does
    container = msgspec.structs.replace(plan.container, **{"nodes": nodes} | changes)
    return msgspec.structs.replace(plan, **{"container": container} | own)
