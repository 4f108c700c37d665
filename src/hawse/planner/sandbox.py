"""Create the plan of a sandbox with its first container, and of a container that joins a sandbox.

Planning includes all checks of the host, and changes nothing on the host.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

from msgspec.structs import replace

from hawse.config import Config
from hawse.notes import Note, noted, warning
from hawse.oci.limits.cgroups import CgroupPlan, vm_limits
from hawse.oci.load import Bundle
from hawse.oci.pods import SANDBOX
from hawse.plan.capacity import Room
from hawse.plan.model import ContainerPlan, MachinePlan, PlugStep, SandboxPlan
from hawse.planner import hugepages
from hawse.planner.container import cgroup_of, container_plan, oom_score_of
from hawse.planner.devices.device_options import DeviceOptions
from hawse.planner.devices.plugs import dma_warning, plug_steps, shape
from hawse.planner.kernel_modules import SHARE as MODULES
from hawse.planner.kernel_modules import modules_share
from hawse.planner.request import read_request
from hawse.planner.vm import plan_machine
from hawse.planner.vm_size import check_size, limits_of
from hawse.state.steps import COMMAND, process_start
from hawse.vfio.requests import Group
from hawse.vm import nvme_disks
from hawse.vm.ports import MIB, PortPlan, Slot, place, plan_ports
from hawse.vm.size import host_size, machine_size

#: The ports of a pod's VM for the groups of all its containers, and how many of them accept groups of several
#: functions.
POD_PORTS, POD_BRIDGES = 16, 2


def plan_sandbox(
    bundle: Bundle, config: Config, *, name: str, timeline: str = "", systemd: bool = False, notify: str = ""
) -> tuple[SandboxPlan, list[Note]]:
    """Plan a sandbox and its first container; also returns notes for the log.

    ``timeline`` is the file for the trace of its start, ``notify`` the caller's NOTIFY_SOCKET. Raises ConfigError,
    DeviceError, ImageError or HostError for every fault that can be detected before QEMU starts.
    """

    def fit(groups: Sequence[Group], options: DeviceOptions, role: str) -> PortPlan:
        return _ports(config, groups, options, role)

    request = read_request(bundle, config, fit, name=name)
    notes, options, is_pod = list(request.notes), request.options, request.role == SANDBOX
    with noted(notes):
        ports = _ports(config, request.groups, options, request.role, disks=len(request.devices.others.disks))
        limits = limits_of(bundle, role=request.role, hugepages=request.vm_hugepages)
        size = machine_size(config.vm.memory_mib, config.vm.cpus, limits, **host_size())
        machine, more = plan_machine(config, request.groups, ports, size=size)
        notes += more
        plugs = plug_steps(
            request.groups,
            ports.slots,
            owner=name,
            options=options,
            by_file=request.devices.by_file,
            memory_mib=machine.shape.memory_mib,
        )
        notes += map(warning, dma_warning(plugs))
        cgroup = _cgroup(bundle, config, machine, name=name, systemd=systemd, pod=is_pod)
        sizes = check_size(machine, limits, cgroup, hugepages=request.hugepages, overhead_mib=config.vm.overhead_mib)
        notes += map(warning, sizes)
        machine, plugs = _plug_cold(machine, plugs) if options.cold and plugs else (machine, plugs)
        container, more = container_plan(request, bundle, config, name=name, plugs=plugs, cgroup=cgroup, notify=notify)
        notes += more
    machine = replace(
        machine,
        label=request.guest.label,
        modules=f"{name}/{MODULES}",
        oom_score_adj=oom_score_of(request.guest.spec),
    )
    plan = SandboxPlan(
        container=replace(container, shares=[*container.shares, modules_share(machine.shape.kernel)]),
        machine=machine,
        ports=list(ports.ports),
        network_port=ports.network,
        pod=is_pod,
        steps=[(COMMAND, "plan made", process_start(), time.monotonic())],
        timeline=timeline,
    )
    return plan, notes


def plan_container(
    bundle: Bundle, config: Config, room: Room, *, name: str, systemd: bool = False, notify: str = ""
) -> tuple[ContainerPlan, list[Note]]:
    """Plan a container that joins a sandbox with this capacity. Raises as :func:`plan_sandbox`."""
    present = {plug.group for plug in room.plugs}
    plain = {port.takes_at for port in room.spares if not port.bridge}

    def fit(groups: Sequence[Group], options: DeviceOptions, _role: str) -> list[Slot]:
        free = list(room.spares)
        slots: list[Slot] = []
        for group in [group for group in groups if group.number not in present]:
            placed = place(shape(group, keep_address=options.keep_addresses), free)
            free = [port for port in free if port.takes_at != placed[0].bus]
            slots += placed
        return slots

    request = read_request(bundle, config, fit, name=name, present=present)
    groups, options, notes = request.groups, request.options, list(request.notes)
    with noted(notes):
        if options.cold and groups:
            text = "devices.plug is cold, but the pod's virtual machine already runs: the devices are hot-plugged"
            notes.append(warning(text))
        slots = fit(groups, options, request.role)
        room.check_disks(request.devices.others.disks, groups=len({slot.bus for slot in slots if slot.bus in plain}))
        new = plug_steps(
            groups, slots, owner=name, options=options, by_file=request.devices.by_file, memory_mib=room.memory_mib
        )
        notes += map(warning, dma_warning(new))
        plugs = [*new, *room.shared([group.number for group in groups], native=options.native)]
        cgroup = cgroup_of(bundle, name, systemd=systemd)
        container, more = container_plan(request, bundle, config, name=name, plugs=plugs, cgroup=cgroup, notify=notify)
        notes += more
        memory = room.check_memory(
            "linux.resources.memory.limit",
            limits_of(bundle, role=request.role).memory,
            hugepages_mib=container.hugepages_mib,
            host_mib=host_size()["host_mib"],
        )
        notes += map(warning, (*memory, *room.warnings(label=request.guest.label)))
    return container, notes


def _ports(config: Config, groups: Sequence[Group], options: DeviceOptions, role: str, *, disks: int = 0) -> PortPlan:
    """The ports of a new VM. A pod's devices are plugged with its containers, while its VM runs."""
    shapes = [shape(group, keep_address=options.keep_addresses) for group in groups]
    if role != SANDBOX:
        return plan_ports(shapes, disks=disks)
    window = config.devices.pod_window_mib * MIB
    return plan_ports(shapes, disks=disks, least=POD_PORTS, bridges=POD_BRIDGES, spare_window=window)


def _cgroup(bundle: Bundle, config: Config, machine: MachinePlan, *, name: str, systemd: bool, pod: bool) -> CgroupPlan:
    """The cgroup of a new VM and its first container. Raises ConfigError and HostError."""
    memory_mib = machine.shape.memory_mib
    # Include disks that a later container of the pod or an attach may add.
    disk_mib = nvme_disks.total_mib(model for models in config.emulated.values() for model in models)
    of_vm = vm_limits(memory_mib + disk_mib, config.vm.overhead_mib)
    cgroup = cgroup_of(bundle, name, systemd=systemd, of_vm=of_vm, pod=pod)
    if machine.page_kib:
        hugepages.check_cgroups(cgroup.path, memory_mib, machine.page_kib)
    return cgroup


def _plug_cold(machine: MachinePlan, plugs: Sequence[PlugStep]) -> tuple[MachinePlan, list[PlugStep]]:
    """Start the VM with its devices plugged. It gets no template, since a template would contain the devices."""
    cold = [command for step in plugs for command in step.commands]
    started = replace(machine, shape=dataclasses.replace(machine.shape, cold=cold), template=None)
    return started, [replace(step, cold=True) for step in plugs]
