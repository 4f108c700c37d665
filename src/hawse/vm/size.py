"""How large a machine must be for its containers' limits. Pure."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass

MIB = 1024 * 1024
#: What the guest's kernel, its agent and the caches of files need beside the containers.
OVERHEAD_MIB = 256
#: From how many MiB on a guest has how many for itself: see :func:`usable_mib`.
_GUEST_MIB = ((2049, 272), (1024, 176), (0, 136))
_TRANSLATED_MIB, _TRANSLATED_MIB_A_CPU = 96, 8
#: CPUs of a machine where nothing says how many, and the most: q35's without extended interrupt mode (QEMU
#: hw/i386/intel_iommu.c, vtd_decide_config(): more than 255 need the property eim).
DEFAULT_CPUS, MOST_CPUS = 2, 255
#: Machines come in sizes: each has a template of its own.
STEP_MIB = 1024
#: The guest's kernel finds room for a page of 1 GiB only in a whole one above the fourth that it has nothing in, and
#: of these it uses the first and the last (seen with 5 to 8 GiB; the 2 GiB that q35 has below the fourth are never
#: whole). So many more it must have.
BESIDE_GIGANTIC_MIB = 4096
_GIGANTIC_KIB = 1024 * 1024
#: Of a pod's sandbox: what its containers' limits come to, by CRI's names of the fields. From containerd's CRI an
#: annotation each (internal/cri/annotations/annotations.go); from CRI-O, by its newer or older name, the JSON of a
#: LinuxContainerResources (server/sandbox_run_linux.go, pkg/annotations/v2/annotations.go).
_MEMORY, _QUOTA, _CPU_PERIOD = "memory_limit_in_bytes", "cpu_quota", "cpu_period"
_CONTAINERD = {
    _MEMORY: "io.kubernetes.cri.sandbox-memory",
    _QUOTA: "io.kubernetes.cri.sandbox-cpu-quota",
    _CPU_PERIOD: "io.kubernetes.cri.sandbox-cpu-period",
}
_CRIO = ("pod-linux-resources.crio.io", "io.kubernetes.cri-o.PodLinuxResources")
_PERIOD = 100_000  # microseconds (Linux Documentation/admin-guide/cgroup-v2.rst, cpu.max)


@dataclass(frozen=True)
class Limits:
    """Memory in bytes; CPU time of ``quota`` microseconds in each ``period``; the number of CPUs in the list of those
    that may be used. 0 or less: no limit. Huge pages as (KiB of a page, count)."""

    memory: int = 0
    hugepages: tuple[tuple[int, int], ...] = ()
    quota: int = 0
    period: int = _PERIOD
    cpus: int = 0


def machine_size(memory_mib: int, cpus: int, limits: Limits, *, host_mib: int, host_cpus: int) -> tuple[int, int]:
    """MiB and CPUs (:func:`machine_memory`, :func:`machine_cpus`)."""
    return machine_memory(memory_mib, limits, host_mib=host_mib), machine_cpus(cpus, limits, host_cpus=host_cpus)


def machine_cpus(configured: int, limits: Limits, *, host_cpus: int) -> int:
    """As many CPUs as the container may use, and at least as many as are ``configured``; 0: nothing is configured.

    A list of CPUs counts as a container without a virtual machine would see it. A quota counts in whole CPUs, where
    there is no list as more than the default only: it does not change the number of CPUs that a program sees. Of both
    the smaller counts.
    """
    periods = -(-limits.quota // limits.period) if limits.quota > 0 and limits.period > 0 else 0
    most = min(host_cpus, MOST_CPUS)
    if limits.cpus > 0:
        return max(configured, min(limits.cpus, periods or limits.cpus, most))
    return max(configured or DEFAULT_CPUS, min(periods, most))


def machine_memory(memory_mib: int, limits: Limits, *, host_mib: int) -> int:
    """MiB: what is configured, or more where limits allow more. A limit that no host could give is none.

    Huge pages are beside all other memory: nothing else can use them.
    """
    most = host_mib // STEP_MIB * STEP_MIB
    limit = limits.memory // MIB if 0 < limits.memory < host_mib * MIB else 0
    if limit:
        memory_mib = max(memory_mib, min(needed_mib(limit), most))
    if limits.hugepages:
        huge = sum(kib * count for kib, count in limits.hugepages) // 1024
        gigantic = sum(count for kib, count in limits.hugepages if kib == _GIGANTIC_KIB)
        least = BESIDE_GIGANTIC_MIB + gigantic * 1024 if gigantic else 0
        beside = min(needed_mib(limit + huge), most) if limit and huge < most else 0
        memory_mib = max(memory_mib, min(_steps(max(memory_mib + huge, least)), most), beside)
    return memory_mib


def usable_mib(memory_mib: int) -> int:
    """What a machine of that size has for its containers: more, and the guest's kernel kills for want of memory.

    Read in guests: 832 MiB of 1024; the kernel keeps 64 bytes for each page of 4 KiB, more of a GiB than of less, and
    from 2 GiB on, which is where q35 puts memory above the fourth GiB, 64 MiB to copy for devices that do not reach it
    (Linux Documentation/core-api/swiotlb.rst).
    """
    [guest] = [mib for least, mib in _GUEST_MIB if memory_mib >= least][:1]
    return max(memory_mib - guest - memory_mib // 64, 0)


def needed_mib(mib: int) -> int:
    """The size of a machine whose containers may use so much."""
    size = _steps(mib + OVERHEAD_MIB)
    while usable_mib(size) < mib:
        size += STEP_MIB
    return size


def _steps(mib: int) -> int:
    return -(-mib // STEP_MIB) * STEP_MIB


def translated_mib(cpus: int, *, one_thread: bool) -> int:
    """The most memory that QEMU may use for translated code, without KVM; 1 GiB unless it is told.

    docs/performance.md has what was measured. CPUs on threads of their own divide it, and the first that has used up
    its part has all of it translated again (QEMU tcg/region.c, tcg_n_regions()): so each has a part that is large
    enough.
    """
    return _TRANSLATED_MIB if one_thread else max(_TRANSLATED_MIB, cpus * _TRANSLATED_MIB_A_CPU)


def pod_limits(annotations: Mapping[str, str]) -> Limits:
    """The limits of a pod's containers together, as its sandbox is told them; what is no number is no limit.

    CRI-O tells the pod's overhead too, and it is left out: the host's cgroup of the pod has it beside these limits, for
    QEMU and the guest's kernel, and a machine that had it as memory of its own would leave QEMU nothing.
    """
    told: Mapping[str, object] = {field: annotations.get(name) for field, name in _CONTAINERD.items()}
    for name in _CRIO:
        if name in annotations:
            told = _object(annotations[name])
            break
    period = _number(told.get(_CPU_PERIOD)) or _PERIOD
    return Limits(memory=_number(told.get(_MEMORY)), quota=_number(told.get(_QUOTA)), period=period)


def _object(text: str) -> dict[str, object]:
    """A JSON object; what is none, null for one, is empty."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _number(value: object) -> int:
    """A positive number, or its digits; 0 for anything else."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        return int(value)
    return value if type(value) is int and 0 < value < 2**63 else 0


def host_size() -> dict[str, int]:
    """This host's, as :func:`machine_size` takes it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MIB
    return {"host_mib": memory, "host_cpus": os.cpu_count() or 1}
