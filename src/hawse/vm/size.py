"""The memory and CPUs that a VM needs for the limits of its containers. Pure."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from hawse.json_text import parse

MIB = 1024 * 1024
#: MiB that the guest kernel, the agent and the page cache need in addition to the containers.
OVERHEAD_MIB = 256
#: (minimum size of the VM, MiB that the guest itself needs): see :func:`usable_mib`.
_GUEST_MIB = ((2049, 272), (1024, 176), (0, 136))
_TRANSLATED_MIB, _TRANSLATED_MIB_A_CPU = 96, 8
#: Default and maximum number of CPUs. The maximum is q35's without extended interrupt mode (QEMU
#: hw/i386/intel_iommu.c, vtd_decide_config(): more than 255 CPUs need the property eim).
DEFAULT_CPUS, MOST_CPUS = 2, 255
#: The memory of a VM is rounded up to a multiple of this, since each size needs its own template.
STEP_MIB = 1024
#: MiB that a VM needs in addition to pages of 1 GiB. The guest kernel can allocate such a page only from an aligned and
#: unused GiB above 4 GiB, and it uses the first and the last of these itself (measured with 5 to 8 GiB). The 2 GiB that
#: q35 has below 4 GiB are never unused as a whole.
BESIDE_GIGANTIC_MIB = 4096
_GIGANTIC_KIB = 1024 * 1024
#: The annotations of a pod's sandbox that contain the sum of its containers' limits, by CRI's field names. containerd's
#: CRI sets one annotation for each field (internal/cri/annotations/annotations.go). CRI-O sets one annotation, with a
#: newer or an older name, that contains a LinuxContainerResources as JSON (server/sandbox_run_linux.go,
#: pkg/annotations/v2/annotations.go).
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
    """Limits of containers; 0 or less: no limit.

    ``memory`` in bytes. ``hugepages`` as (page size in KiB, count). ``quota``: CPU time in microseconds in each
    ``period``. ``cpus``: the number of CPUs in the cpuset.
    """

    memory: int = 0
    hugepages: tuple[tuple[int, int], ...] = ()
    quota: int = 0
    period: int = _PERIOD
    cpus: int = 0


def machine_size(memory_mib: int, cpus: int, limits: Limits, *, host_mib: int, host_cpus: int) -> tuple[int, int]:
    """The VM's memory in MiB and its CPUs (:func:`machine_memory`, :func:`machine_cpus`)."""
    return machine_memory(memory_mib, limits, host_mib=host_mib), machine_cpus(cpus, limits, host_cpus=host_cpus)


def machine_cpus(configured: int, limits: Limits, *, host_cpus: int) -> int:
    """The number of virtual CPUs: as many as the container may use, and at least ``configured`` (0: not configured).

    A cpuset gives the number of CPUs that a container without a VM would see. A quota is rounded up to whole CPUs.
    Without a cpuset a quota never gives fewer CPUs than the default, since outside a VM it does not change the number
    of CPUs that a program sees. With both, the smaller number applies.
    """
    periods = -(-limits.quota // limits.period) if limits.quota > 0 and limits.period > 0 else 0
    most = min(host_cpus, MOST_CPUS)
    if limits.cpus > 0:
        return max(configured, min(limits.cpus, periods or limits.cpus, most))
    return max(configured or DEFAULT_CPUS, min(periods, most))


def machine_memory(memory_mib: int, limits: Limits, *, host_mib: int) -> int:
    """The VM's memory in MiB: as configured, or more where the limits allow more.

    A limit of at least the host's memory counts as no limit. Huge pages are added to the other memory: nothing else can
    use them.
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
    """MiB that a VM of that size has for its containers. If they use more, the guest kernel's OOM killer kills.

    Measured in guests: 832 MiB of 1024. The kernel keeps 64 bytes for each page of 4 KiB, and a fixed part that is
    larger from 1 GiB on. Above 2 GiB q35 places memory above 4 GiB, and the kernel reserves another 64 MiB as bounce
    buffers for devices that cannot address it (Linux Documentation/core-api/swiotlb.rst).
    """
    [guest] = [mib for least, mib in _GUEST_MIB if memory_mib >= least][:1]
    return max(memory_mib - guest - memory_mib // 64, 0)


def needed_mib(mib: int) -> int:
    """The size in MiB of a VM whose containers may use ``mib``."""
    size = _steps(mib + OVERHEAD_MIB)
    while usable_mib(size) < mib:
        size += STEP_MIB
    return size


def _steps(mib: int) -> int:
    return -(-mib // STEP_MIB) * STEP_MIB


def translated_mib(cpus: int, *, one_thread: bool) -> int:
    """The maximum size of QEMU's buffer for translated code without KVM, in MiB; QEMU's default is 1 GiB.

    docs/performance.md contains the measurements. CPUs with one thread each divide the buffer into regions. As soon as
    one CPU has used up its regions, QEMU discards the whole buffer and translates again (QEMU tcg/region.c,
    tcg_n_regions()): so the buffer grows with the number of CPUs.
    """
    return _TRANSLATED_MIB if one_thread else max(_TRANSLATED_MIB, cpus * _TRANSLATED_MIB_A_CPU)


def pod_limits(annotations: Mapping[str, str]) -> Limits:
    """The sum of the limits of a pod's containers, from its sandbox's annotations. A value that is not a number counts
    as no limit.

    CRI-O passes the pod's overhead too, which is ignored: the pod's cgroup on the host contains it in addition to these
    limits, for QEMU and the guest kernel. If the VM's memory included it, nothing would be left for QEMU.
    """
    resources: Mapping[str, object] = {field: annotations.get(name) for field, name in _CONTAINERD.items()}
    for name in _CRIO:
        if name in annotations:
            resources = _object(annotations[name])
            break
    period = _number(resources.get(_CPU_PERIOD)) or _PERIOD
    return Limits(memory=_number(resources.get(_MEMORY)), quota=_number(resources.get(_QUOTA)), period=period)


def _object(text: str) -> dict[str, object]:
    """Parse a JSON object; any other text, including null, gives an empty one."""
    try:
        value = parse(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _number(value: object) -> int:
    """A positive number, or a string of its decimal digits, as int; 0 for any other value."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        return int(value)
    return value if type(value) is int and 0 < value < 2**63 else 0


def host_size() -> dict[str, int]:
    """This host's memory and CPUs, as arguments for :func:`machine_size`."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MIB
    return {"host_mib": memory, "host_cpus": os.cpu_count() or 1}
