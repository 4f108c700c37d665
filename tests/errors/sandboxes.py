"""Errors of containers in pods, of cgroups of the host, and of SELinux labels."""

from __future__ import annotations

from typing import Any
from unittest import mock

from hawse.host import selinux
from hawse.host.mounts import overlays
from hawse.monitor.devices.claims import Claims
from hawse.oci.limits import cpusets
from hawse.oci.pods import CONTAINER
from hawse.plan.capacity import Room
from hawse.planner.cgroup_limits import Allowed, Limit
from hawse.planner.cgroup_limits import check as check_allowance
from hawse.planner.devices.plugs import plug_steps, shape
from hawse.planner.hugepages import Asked, decide
from hawse.vm.host_memory import needs_of
from hawse.vm.ports import MIB, place, plan_ports
from hawse.vm.size import Limits
from tests.errors.situation import Act, bundle, hurried
from tests.support.groups import EDU
from tests.support.plans import machine_plan
from tests.support.sysfs import FakeSysfs


def kept_lock(host: FakeSysfs) -> None:
    with (
        overlays.alone(host.root, "c1"),
        mock.patch.object(overlays, "time", hurried()),
        overlays.alone(host.root, "c2"),
    ):
        pass


def deleted_sandbox(host: FakeSysfs) -> None:
    with overlays.alone(f"{host.root}/pod1", "c1"):
        pass


def in_room(*, memory: int = 0, label: str = "") -> Act:
    """A container joins a pod whose VM has 1 GiB, of which 256 MiB are huge pages of others, and no SELinux label."""
    room = Room(spares=[], memory_mib=1024, hugepages_mib=256)
    if memory:
        return lambda _host: room.check_memory("linux.resources.memory.limit", memory, host_mib=65536)
    return lambda _host: room.warnings(label=label)[0]


def above(**limits: float) -> Act:
    """The cgroup of a Kubernetes pod with these limits."""
    files = {"memory": "memory.max", "tasks": "pids.max", "cpus": "cpu.max"}
    allowed = Allowed(**{
        name: Limit(f"/sys/fs/cgroup/kubepods.slice/kubepods-pod5.slice/{files[name]}", value)
        for name, value in limits.items()
    })  # fmt: skip
    needs = needs_of(machine_plan(memory_mib=1024, cpus=2).shape, Limits(memory=512 * MIB))
    return lambda _host: check_allowance(allowed, needs)[0]


def unsaid_pages(_host: FakeSysfs) -> Any:
    request = Asked(mounted=frozenset({2048}), kubelets=True)
    return decide(request, role=CONTAINER, memory_mib=1024, host_mib=65536)


def kept_group(_host: FakeSysfs) -> None:
    ports = plan_ports([shape(EDU)]).ports
    claims = Claims(ports)
    plugs = plug_steps([EDU], place(shape(EDU), ports), owner="c1")
    claims.claim(plugs, owner="c1")
    claims.release(plugs, plugs, owner="c1")
    claims.claim(plugs, owner="c2")


LABEL = "system_u:system_r:container_kvm_t:s0:c1,c2"

SITUATIONS: dict[str, Act] = {
    "A container has an SELinux label, and the host has no SELinux": (
        lambda host: selinux.check("config.json", LABEL, root=host.root)
    ),
    "A container of a pod has another label than its machine (a warning)": in_room(label=LABEL),
    "A container's memory limit exceeds the memory of its pod's VM": in_room(memory=2048 * MIB),
    "A cgroup of the host allows less memory than the VM needs": above(memory=64 * MIB),
    "A cgroup of the host allows less memory than the containers may use (a warning)": above(memory=700 * MIB),
    "A cgroup of the host allows fewer processes than a sandbox needs": above(tasks=10),
    "A cgroup of the host allows little CPU time (a warning)": above(cpus=0.05),
    "A list of CPUs is invalid": lambda _host: cpusets.check("linux.resources", "cpus", "3-1", last=7),
    "A list of CPUs has CPUs that the host lacks": lambda _host: cpusets.check("linux.resources", "cpus", "8", last=7),
    "A kubelet's container mounts huge pages, and their number is unknown": unsaid_pages,
    "The guest still has a group of a container that was deleted": kept_group,
    "Another container of the pod does not finish mounting its overlays": kept_lock,
    "A container with an overlay joins a pod that is deleted at this moment": deleted_sandbox,
    "A cgroup file cannot be set for a container": bundle(linux={"resources": {"unified": {"io.max": "8:0 rbps=1"}}}),
}  # fmt: skip
