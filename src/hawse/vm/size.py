"""How large a machine must be for its containers' limits. Pure."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

MIB = 1024 * 1024
#: What the guest's kernel, its agent and the caches of files need beside the containers.
OVERHEAD_MIB = 256
#: Machines come in sizes: each has a template of its own.
STEP_MIB = 1024
#: The guest's kernel finds room for a page of 1 GiB only in a whole one above the fourth that it has nothing in, and
#: of these it uses the first and the last (seen with 5 to 8 GiB; the 2 GiB that q35 has below the fourth are never
#: whole). So many more it must have.
BESIDE_GIGANTIC_MIB = 4096
_GIGANTIC_KIB = 1024 * 1024
#: Of a pod's sandbox: what its containers' limits come to (containerd internal/cri/annotations/annotations.go).
POD_MEMORY, POD_QUOTA, POD_PERIOD = (
    "io.kubernetes.cri.sandbox-memory",
    "io.kubernetes.cri.sandbox-cpu-quota",
    "io.kubernetes.cri.sandbox-cpu-period",
)
_PERIOD = 100_000  # microseconds (Linux Documentation/admin-guide/cgroup-v2.rst, cpu.max)


@dataclass(frozen=True)
class Limits:
    """Memory in bytes; CPU time of ``quota`` microseconds in each ``period``. 0 or less: no limit. Huge pages as (KiB
    of a page, count)."""

    memory: int = 0
    hugepages: tuple[tuple[int, int], ...] = ()
    quota: int = 0
    period: int = _PERIOD


def machine_size(memory_mib: int, cpus: int, limits: Limits, *, host_mib: int, host_cpus: int) -> tuple[int, int]:
    """MiB and CPUs: what is configured, or more where limits allow more. A limit that no host could give is none.

    Huge pages are beside all other memory: nothing else can use them.
    """
    most = host_mib // STEP_MIB * STEP_MIB
    if 0 < limits.memory < host_mib * MIB:
        memory_mib = max(memory_mib, min(_steps(limits.memory // MIB + OVERHEAD_MIB), most))
    if limits.hugepages:
        huge = sum(kib * count for kib, count in limits.hugepages) // 1024
        gigantic = sum(count for kib, count in limits.hugepages if kib == _GIGANTIC_KIB)
        least = BESIDE_GIGANTIC_MIB + gigantic * 1024 if gigantic else 0
        memory_mib = max(memory_mib, min(_steps(max(memory_mib + huge, least)), most))
    if limits.quota > 0 and limits.period > 0:
        cpus = max(cpus, min(-(-limits.quota // limits.period), host_cpus))
    return memory_mib, cpus


def _steps(mib: int) -> int:
    return -(-mib // STEP_MIB) * STEP_MIB


def pod_limits(annotations: Mapping[str, str]) -> Limits:
    """The limits of a pod's containers together, as its sandbox is told them; what is no number is no limit."""

    def number(name: str) -> int:
        text = annotations.get(name, "")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0

    return Limits(memory=number(POD_MEMORY), quota=number(POD_QUOTA), period=number(POD_PERIOD) or _PERIOD)


def host_size() -> dict[str, int]:
    """This host's, as :func:`machine_size` takes it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MIB
    return {"host_mib": memory, "host_cpus": os.cpu_count() or 1}
