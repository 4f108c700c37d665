"""Whether the host's cgroups above a sandbox allow what its virtual machine needs.

They are read before anything is started. The kernel would else kill the monitor or QEMU in the middle of the start, and
nobody could tell why. Only limits count: what others below the same cgroup use now may be gone in a moment.
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
#: µs in each period: with less than a quarter of a CPU a start takes many times as long (deploy/kubernetes/README.md).
_LEAST_CPU = 0.25
_OVERHEAD = "for a Kubernetes pod by an `overhead` of its RuntimeClass"


@dataclass(frozen=True)
class Limit:
    """The file of a cgroup, and what it allows."""

    path: str
    value: float


@dataclass(frozen=True)
class Allowed:
    """The least of the limits of the cgroups above, None for none. Memory in bytes: beyond ``memory`` the kernel kills,
    beyond ``high`` it slows down. ``cpus`` is CPU time in that time."""

    memory: Limit | None = None
    high: Limit | None = None
    tasks: Limit | None = None
    cpus: Limit | None = None


def check(allowed: Allowed, needs: Needs) -> list[str]:
    """What to warn of. Raises :class:`HostError` where the start would fail for certain."""
    if allowed.memory is not None and allowed.memory.value < needs.start_mib * _MIB:
        raise HostError(
            f"{allowed.memory.path} allows {_mib(allowed.memory)} MiB, and the virtual machine needs "
            f"{needs.start_mib} MiB before its containers use any",
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
            f"MiB when its containers use all that they may: the host's kernel then kills it [raise that limit, "
            f"{_OVERHEAD}]"
        )
    if allowed.high is not None and allowed.high.value < needs.start_mib * _MIB:
        warnings.append(
            f"{allowed.high.path} is {_mib(allowed.high)} MiB, and the virtual machine needs {needs.start_mib} MiB "
            f"before its containers use any: the host's kernel slows it down [raise that limit, {_OVERHEAD}]"
        )
    if allowed.cpus is not None and allowed.cpus.value < _LEAST_CPU:
        warnings.append(
            f"{allowed.cpus.path} allows {allowed.cpus.value:.2f} CPUs, with which the virtual machine starts slowly "
            f"[raise that limit, {_OVERHEAD}]"
        )
    return warnings


def read(path: str, *, mountinfo: str = "/proc/self/mountinfo", own: str = "/proc/self/cgroup") -> Allowed:
    """The limits of the cgroups above ``path``: hawse sets those of that one.

    A sandbox without a path stays in the cgroup of this process, of which ``own`` tells (cgroups(7)).
    """
    found: dict[str, list[Limit]] = {}
    for hierarchy, directory in above(path and posixpath.dirname(path), mountinfo=mountinfo, own=own):
        for name, (file, unit) in _FILES[hierarchy.version].items():
            value = _read(f"{directory}/{file}", unit)
            if value is not None:
                found.setdefault(name, []).append(Limit(f"{directory}/{file}", value))
    return Allowed(**{name: min(limits, key=lambda limit: limit.value) for name, limits in found.items()})


def above(
    path: str, *, mountinfo: str = "/proc/self/mountinfo", own: str = "/proc/self/cgroup"
) -> Iterator[tuple[Hierarchy, str]]:
    """The directories of a cgroup and of those above it, with their hierarchy, the lowest first."""
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
    """The path below which a container without a cgroup path gets its cgroup, as runc has it: in version 1 this
    process's own cgroup, of the controller cpuset; in version 2 the one above it, since a cgroup with processes cannot
    have others below it with limits (Linux Documentation/admin-guide/cgroup-v2.rst, "No Internal Process Constraint").
    """
    mounted = hierarchies(read_text(mountinfo))
    paths = _paths(own)
    for hierarchy in mounted:
        if "cpuset" in hierarchy.controllers:
            return paths.get(",".join(sorted(hierarchy.controllers)), "/")
    return posixpath.dirname(paths.get("", "/"))


#: Files by what they limit, with the file of a quota's period where it has one.
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
    """A process's path in each hierarchy, by its controllers, sorted; "" for version 2."""
    with open(own) as file:
        lines = [line.rstrip("\n").split(":", 2) for line in file]
    # One above the root of this process's cgroup namespace begins with "..", and cannot be found from here.
    return {",".join(sorted(names.split(","))): path for _, names, path in lines if not path.startswith("/..")}


def _read(path: str, period: str) -> float | None:
    """What a file allows: a number, or two of which the first is for each of the second, or of the file ``period``."""
    try:
        with open(path) as file:
            words = file.read(128).split()
        if period:
            with open(f"{path.rpartition('/')[0]}/{period}") as file:
                words += file.read(64).split()
        numbers = [int(word) for word in words]
        return None if numbers[0] < 0 else numbers[0] / (numbers[1] if len(numbers) > 1 else 1)
    except (OSError, ValueError, LookupError, ZeroDivisionError):
        return None  # it is not there, or says "max"


def _mib(limit: Limit) -> int:
    return int(limit.value) // _MIB
