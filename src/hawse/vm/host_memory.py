"""Estimate the host memory and tasks that a sandbox needs: the guest memory in use, and the host's processes. Pure.

The constants were measured with bench/footprint.py and bench/busy.py; docs/performance.md explains them.
"""

from __future__ import annotations

from dataclasses import dataclass

from hawse.vm.arguments import VmShape
from hawse.vm.size import MIB, Limits, translated_mib, usable_mib

#: MiB of guest memory in use before a container runs: in a VM restored from a template, and in one that booted.
_RESTORED_MIB, _BOOTED_MIB = 120, 143
#: MiB of QEMU, virtiofsd, the monitor and the proxies, without guest memory and QEMU's translated code: just after
#: their start, and in a busy pod.
_IDLE_MIB, _BUSY_MIB = 50, 80
#: MiB of QEMU's translated code when a restored VM runs its first container.
_FIRST_TRANSLATED_MIB = 16
#: Processes and threads of an idle sandbox without its virtual CPUs: the monitor, QEMU, virtiofsd, one proxy.
_TASKS = 14


@dataclass(frozen=True)
class Needs:
    """Memory in MiB, and ``tasks``: processes and threads.

    ``host_mib``: memory in addition to the guest's. ``start_mib``: total until the first container runs.
    ``full_mib``: total when the containers use all that their limits allow, 0 where they have no limit.
    """

    host_mib: int
    start_mib: int
    full_mib: int
    tasks: int


def needs_of(
    shape: VmShape, limits: Limits, *, restored: bool = False, own_pages: bool = False, reserved_mib: int = 0
) -> Needs:
    """The needs of a VM whose containers have these limits.

    ``restored``: it is restored from a template. ``own_pages``: its memory consists of the host's huge pages, which the
    kernel does not charge to the memory cgroup. ``reserved_mib``: huge pages that the guest reserves for its first
    container.
    """
    memory_mib = shape.memory_mib
    translated = translated_mib(shape.cpus, one_thread=shape.one_thread) if shape.accel == "tcg" else 0
    if own_pages:
        guest = full = 0
    else:
        guest = min((_RESTORED_MIB if restored else _BOOTED_MIB) + reserved_mib, memory_mib)
        pages = sum(kib * count for kib, count in limits.hugepages) // 1024
        full = min(limits.memory // MIB + pages + memory_mib - usable_mib(memory_mib), memory_mib)
    return Needs(
        host_mib=_BUSY_MIB + translated,
        start_mib=guest + _IDLE_MIB + (min(translated, _FIRST_TRANSLATED_MIB) if restored else translated),
        full_mib=full + _BUSY_MIB + translated if limits.memory > 0 else 0,
        tasks=_TASKS + (1 if shape.one_thread else shape.cpus),
    )
