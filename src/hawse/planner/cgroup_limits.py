"""Check that the host's cgroups above a sandbox allow what its virtual machine needs.

They are checked before anything is started. Otherwise the kernel would kill the monitor or QEMU during the start, with
no hint at the cause. Only limits are checked: the current usage by others below the same cgroup may change at any time.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass

from hawse.errors import HostError
from hawse.host.cgroup.sandbox_cgroup import Hierarchy, hierarchies
from hawse.linux.mountinfo import read_text
from hawse.vm.host_memory import Needs

_MIB = 1024 * 1024
#: CPUs: with less than a quarter of a CPU, a start takes many times as long (deploy/kubernetes/README.md).
_LEAST_CPU = 0.25
_OVERHEAD = "for a Kubernetes pod by an `overhead` of its RuntimeClass"


@dataclass(frozen=True)
class Limit:
    """A limit: the path of the cgroup file, and its value."""

    path: str
    value: float


@dataclass(frozen=True)
class Allowed:
    """The lowest limits of the cgroups above a sandbox, None for no limit.

    ``memory`` and ``high`` are in bytes: above ``memory`` the kernel kills processes, above ``high`` it slows them
    down. ``cpus`` is CPU time per elapsed time.
    """

    memory: Limit | None = None
    high: Limit | None = None
    tasks: Limit | None = None
    cpus: Limit | None = None


def check(allowed: Allowed, needs: Needs) -> list[str]:
    """Compare limits and needs. Returns warnings. Raises :class:`HostError` if the start would certainly fail."""
    if allowed.memory is not None and allowed.memory.value < needs.start_mib * _MIB:
        raise HostError(
            f"{allowed.memory.path} allows {_mib(allowed.memory)} MiB, and the virtual machine needs "
            f"{needs.start_mib} MiB before its containers use memory",
            hint=f"raise that limit, {_OVERHEAD}, as in deploy/kubernetes/runtimeclass.yaml",
        )
    if allowed.tasks is not None and allowed.tasks.value < needs.tasks:
        raise HostError(
            f"{allowed.tasks.path} allows {allowed.tasks.value:.0f} processes and threads, and a sandbox needs "
            f"{needs.tasks} on the host",
            hint="raise that limit, for a Kubernetes pod by podPidsLimit of the kubelet",
        )
    warnings = []
    if allowed.memory is not None and allowed.memory.value < needs.full_mib * _MIB:
        warnings.append(
            f"{allowed.memory.path} allows {_mib(allowed.memory)} MiB, and the virtual machine needs {needs.full_mib} "
            f"MiB when its containers use all their memory: the host kernel then kills it [raise that limit, "
            f"{_OVERHEAD}]"
        )
    if allowed.high is not None and allowed.high.value < needs.start_mib * _MIB:
        warnings.append(
            f"{allowed.high.path} is {_mib(allowed.high)} MiB, and the virtual machine needs {needs.start_mib} MiB "
            f"before its containers use memory: the host kernel slows it down [raise that limit, {_OVERHEAD}]"
        )
    if allowed.cpus is not None and allowed.cpus.value < _LEAST_CPU:
        warnings.append(
            f"{allowed.cpus.path} allows {allowed.cpus.value:.2f} CPUs, with which the virtual machine starts slowly "
            f"[raise that limit, {_OVERHEAD}]"
        )
    return warnings


def read(path: str, *, mountinfo: str = "/proc/self/mountinfo", own: str = "/proc/self/cgroup") -> Allowed:
    """The lowest limits of the cgroups above ``path``. Those of ``path`` itself are not read, since hawse sets them.

    A sandbox without a path stays in the cgroup of this process, which the file ``own`` names (cgroups(7)).
    """
    limits: dict[str, list[Limit]] = {}
    for hierarchy, directory in above(path and posixpath.dirname(path), mountinfo=mountinfo, own=own):
        for name, (file, unit) in _FILES[hierarchy.version].items():
            value = _read(f"{directory}/{file}", unit)
            if value is not None:
                limits.setdefault(name, []).append(Limit(f"{directory}/{file}", value))
    return Allowed(**{name: min(values, key=lambda limit: limit.value) for name, values in limits.items()})


def above(
    path: str, *, mountinfo: str = "/proc/self/mountinfo", own: str = "/proc/self/cgroup"
) -> Iterator[tuple[Hierarchy, str]]:
    """The directories of a cgroup and of its ancestors in each hierarchy, the cgroup itself first."""
    mounted = hierarchies(read_text(mountinfo))
    paths = {} if path else _paths(own)
    for hierarchy in mounted:
        below = path or paths.get(",".join(sorted(hierarchy.controllers)), "")
        while True:
            below = below.rstrip("/")
            yield hierarchy, f"{hierarchy.mount}{below}"
            if not below:
                break
            below = below.rpartition("/")[0]


def default_parent(*, mountinfo: str = "/proc/self/mountinfo", own: str = "/proc/self/cgroup") -> str:
    """The parent of the cgroup of a container without a cgroup path, as in runc.

    In version 1 it is this process's cgroup of the controller cpuset. In version 2 it is the parent of this process's
    cgroup, since a cgroup with processes cannot contain cgroups with limits (Linux
    Documentation/admin-guide/cgroup-v2.rst, "No Internal Process Constraint").
    """
    mounted = hierarchies(read_text(mountinfo))
    paths = _paths(own)
    for hierarchy in mounted:
        if "cpuset" in hierarchy.controllers:
            return paths.get(",".join(sorted(hierarchy.controllers)), "/")
    return posixpath.dirname(paths.get("", "/"))


#: By version and field of :class:`Allowed`: the cgroup file, and the file with a quota's period, "" for none.
_FILES = {
    1: {
        "memory": ("memory.limit_in_bytes", ""),
        "tasks": ("pids.max", ""),
        "cpus": ("cpu.cfs_quota_us", "cpu.cfs_period_us"),
    },
    2: {
        "memory": ("memory.max", ""),
        "high": ("memory.high", ""),
        "tasks": ("pids.max", ""),
        "cpus": ("cpu.max", ""),
    },
}


def _paths(own: str) -> dict[str, str]:
    """A process's cgroup path in each hierarchy, by the sorted names of its controllers; "" is version 2."""
    with open(own) as file:
        lines = [line.rstrip("\n").split(":", 2) for line in file]
    # A path outside this process's cgroup namespace begins with "..": its directory is not visible here.
    return {",".join(sorted(names.split(","))): path for _, names, path in lines if not path.startswith("/..")}


def _read(path: str, period: str) -> float | None:
    """Read a number, or a quota divided by the period in the same file or in ``period``; None for no limit."""
    try:
        with open(path) as file:
            words = file.read(128).split()
        if period:
            with open(f"{path.rpartition('/')[0]}/{period}") as file:
                words += file.read(64).split()
        numbers = [int(word) for word in words]
        return None if numbers[0] < 0 else numbers[0] / (numbers[1] if len(numbers) > 1 else 1)
    except (OSError, ValueError, LookupError, ZeroDivisionError):
        return None  # it does not exist, or contains "max"


def _mib(limit: Limit) -> int:
    return int(limit.value) // _MIB
