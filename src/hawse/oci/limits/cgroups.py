"""The sandbox's cgroup on the host: its path, from linux.cgroupsPath, and its limits. Pure."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import Any

import msgspec

from hawse.errors import ConfigError

#: The kernel's default period of a CPU quota in µs (Linux Documentation/scheduler/sched-bwc.rst).
_PERIOD = 100_000
#: Maximum processes and threads of a sandbox on the host. QEMU may use 1024, and each `exec` runs a proxy with three.
TASKS = 4096


class HostLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of a cgroup on the host; 0 and "" mean that a limit is not changed.

    ``memory`` in bytes, ``tasks`` in processes and threads. ``quota`` is CPU time per ``period``, both in µs; a
    quota of -1 means no limit.
    """

    shares: int = 0
    cpus: str = ""
    mems: str = ""
    memory: int = 0
    tasks: int = 0
    quota: int = 0
    period: int = 0

    @property
    def asked_for(self) -> HostLimits:
        """The limits that the container requests, without those that hawse adds."""
        return HostLimits(shares=self.shares, cpus=self.cpus, mems=self.mems)


class CgroupPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A cgroup on the host: ``path`` is below the root of each hierarchy, "" for no cgroup.

    ``unit`` is the systemd unit of the cgroup, in the slice ``slice``; both are "" if hawse creates the cgroup without
    systemd. ``vm``: the virtual machine runs in this cgroup. The cgroups of a pod's other containers contain only their
    proxies.
    """

    path: str = ""
    slice: str = ""
    unit: str = ""
    limits: HostLimits = HostLimits()
    vm: bool = False


def default_path(container: str, parent: str, *, systemd: bool) -> str:
    """The cgroup path, below ``parent``, of a container whose specification has no path. It is runc's default
    (libcontainer/cgroups/fs2/defaultpath.go, systemd/common.go)."""
    return f":hawse:{container}" if systemd else f"{parent.rstrip('/')}/{container}"


def plan_cgroup(
    name: str,
    path: str,
    resources: Mapping[str, Any],
    *,
    systemd: bool,
    of_vm: HostLimits | None = None,
    default: str = "",
) -> CgroupPlan:
    """Plan the cgroup on the host. ``name`` is the document's name for errors.

    ``of_vm`` are the limits of memory and tasks for the virtual machine and its helpers, if they run in this cgroup.
    ``default`` is the path to use if the specification has no path but sets a limit that only a cgroup of the host can
    enforce. Raises :class:`ConfigError`.
    """
    vm = of_vm is not None
    limits = host_limits(resources, vm=vm)
    if not path and limits != HostLimits():
        path = default
    if of_vm is not None:
        limits = msgspec.structs.replace(limits, memory=of_vm.memory, tasks=of_vm.tasks)
    if not path:
        return CgroupPlan()
    if not systemd:
        clean = posixpath.normpath("/" + path.lstrip("/"))
        return CgroupPlan(path="" if clean == "/" else clean, limits=limits, vm=vm)
    parts = path.split(":")
    if len(parts) != 3 or not parts[2] or "/" in path:
        raise ConfigError(
            f"{name}: linux.cgroupsPath: expected cgroupsPath to be of format slice:prefix:name for systemd cgroups, "
            f"got {path[:200]!r} instead"
        )
    above, prefix, last = parts[0] or "system.slice", parts[1], parts[2]
    unit = last if last.endswith(".slice") else f"{prefix}-{last}.scope"
    try:
        return CgroupPlan(path=f"{expand_slice(above)}/{unit}", slice=above, unit=unit, limits=limits, vm=vm)
    except ValueError:
        raise ConfigError(f"{name}: linux.cgroupsPath: invalid slice name {above[:200]!r}") from None


def expand_slice(name: str) -> str:
    """The cgroup path of a slice: "a-b.slice" is a child of "a.slice" (systemd.slice(5)). Raises ValueError."""
    stem = name.removesuffix(".slice")
    if stem == name or not stem:
        raise ValueError(name)
    if stem == "-":
        return ""
    parts = stem.split("-")
    if not all(parts):
        raise ValueError(name)
    return "".join(f"/{'-'.join(parts[: count + 1])}.slice" for count in range(len(parts)))


def vm_limits(memory_mib: int, overhead_mib: int) -> HostLimits:
    """The limits of memory and tasks for a virtual machine and its helpers. ``overhead_mib`` is added to the guest's
    memory; 0 means no limit."""
    return HostLimits(memory=(memory_mib + overhead_mib) << 20 if overhead_mib else 0, tasks=TASKS)


def host_limits(resources: Mapping[str, Any], *, vm: bool) -> HostLimits:
    """The limits of linux.resources that apply to the cgroup on the host.

    The guest limits the container's memory, processes and CPU time. The cgroup on the host also contains QEMU and the
    guest kernel, so its CPU quota is one CPU higher. ``vm``: the virtual machine runs in this cgroup.
    """
    cpu = resources.get("cpu") or {}
    quota, period = cpu.get("quota") or 0, cpu.get("period") or _PERIOD
    return HostLimits(
        shares=cpu.get("shares") or 0,
        cpus=cpu.get("cpus") or "",
        mems=cpu.get("mems") or "",
        quota=(quota + period if quota > 0 else quota) if vm else 0,
        period=period if vm and quota else 0,
    )
