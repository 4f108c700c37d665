"""The size that a bundle's virtual machine needs, and whether this host and its cgroups allow it."""

from __future__ import annotations

from hawse.errors import ConfigError
from hawse.linux.topology import last_number
from hawse.oci.limits import cpusets
from hawse.oci.limits.cgroups import CgroupPlan
from hawse.oci.load import Bundle
from hawse.oci.pods import SANDBOX
from hawse.plan.model import MachinePlan
from hawse.planner import cgroup_limits
from hawse.vm.host_memory import needs_of
from hawse.vm.size import MIB, Limits, host_size, pod_limits, usable_mib

Pages = tuple[tuple[int, int], ...]


def check_lists(bundle: Bundle) -> None:
    """Raise :class:`ConfigError` for a list of CPUs or memory nodes that is invalid or not available on this host."""
    resources = bundle.spec.linux.resources if bundle.spec.linux else None
    cpu = resources.cpu if resources else None
    for field, text, kind in (("cpus", cpu.cpus, "cpu"), ("mems", cpu.mems, "node")) if cpu else ():
        if text:
            cpusets.check(f"{bundle.path}/config.json: linux.resources", field, text, last=last_number(kind))


def limits_of(bundle: Bundle, *, role: str, hugepages: Pages = ()) -> Limits:
    """The limits of the container, or of all the pod's containers if it is a pod's sandbox.

    ``hugepages`` are those that the VM needs memory for. The list of CPUs must have been checked.
    """
    pod = pod_limits(bundle.spec.annotations or {}) if role == SANDBOX else Limits()
    resources = bundle.spec.linux.resources if bundle.spec.linux else None
    memory = resources.memory if resources else None
    cpu = resources.cpu if resources else None
    return Limits(
        memory=pod.memory or (memory.limit or 0 if memory else 0),
        hugepages=hugepages,
        quota=pod.quota or (cpu.quota or 0 if cpu else 0),
        period=pod.period if pod.quota else (cpu.period or pod.period if cpu else pod.period),
        cpus=len(cpusets.parse(cpu.cpus, last=last_number("cpu"))) if cpu and cpu.cpus else 0,
    )


def check_size(
    machine: MachinePlan, limits: Limits, cgroup: CgroupPlan, *, hugepages: Pages, overhead_mib: int
) -> list[str]:
    """Check that the host and its cgroups allow what the VM needs. Returns warnings.

    ``hugepages`` are those that the guest reserves for its first container. ``overhead_mib`` is the value of the
    configuration. Raises :class:`ConfigError` and :class:`HostError`.
    """
    shape = machine.shape
    needs = needs_of(
        shape,
        limits,
        restored=machine.template is not None and machine.template.usable,
        own_pages=bool(machine.page_kib),
        reserved_mib=sum(kib * count for kib, count in hugepages) // 1024,
    )
    if 0 < overhead_mib < needs.host_mib:
        raise ConfigError(
            f"configuration: vm.overhead_mib is {overhead_mib}, and QEMU and its helpers may need {needs.host_mib} MiB "
            "in addition to the memory of the virtual machine",
            hint=f"set it to {needs.host_mib} or more, or to 0 for no limit",
        )
    warnings = []
    host_mib = host_size()["host_mib"]
    left = usable_mib(shape.memory_mib) - sum(kib * count for kib, count in limits.hugepages) // 1024
    if max(left, 0) * MIB < limits.memory < host_mib * MIB:
        warnings.append(
            f"linux.resources.memory.limit: {limits.memory // MIB} MiB are more than the virtual machine has for its "
            f"containers: {max(left, 0)} MiB of {shape.memory_mib} MiB [lower the limit: this host does not have more "
            "memory for the VM]"
        )
    if shape.memory_mib > host_mib:
        warnings.append(
            f"vm.memory_mib: the virtual machine may use {shape.memory_mib} MiB, and this host has {host_mib} MiB "
            "[lower it]"
        )
    return [*warnings, *cgroup_limits.check(cgroup_limits.read(cgroup.path), needs)]
