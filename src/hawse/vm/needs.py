"""What a sandbox needs of the host: the memory of its guest that is in use, and what is beside it. Pure.

The figures are readings of bench/footprint.py and bench/busy.py, which docs/performance.md explains.
"""

from __future__ import annotations

from dataclasses import dataclass

from hawse.vm.size import MIB, Limits, translated_mib, usable_mib

#: MiB of the guest that are in use before a container runs, restored from a template and booted.
_RESTORED_MIB, _BOOTED_MIB = 120, 143
#: MiB beside the guest, and beside QEMU's translated code: QEMU, virtiofsd, the monitor and the proxies, when they have
#: just been started, and in a busy pod.
_IDLE_MIB, _BUSY_MIB = 50, 80
#: MiB of QEMU's translated code when a machine that was restored runs its first container.
_FIRST_TRANSLATED_MIB = 16
#: Processes and threads of an idle sandbox without its virtual CPUs: the monitor, QEMU, virtiofsd, one proxy.
_TASKS = 14


@dataclass(frozen=True)
class Needs:
    """In MiB, and in processes and threads. ``host_mib`` is beside the guest's memory; ``start_mib`` until the first
    container runs; ``full_mib`` when the containers use all that they may, 0 where they have no limit."""

    host_mib: int
    start_mib: int
    full_mib: int
    tasks: int


def needs_of(
    memory_mib: int,
    limits: Limits,
    *,
    accel: str,
    cpus: int,
    one_thread: bool = False,
    restored: bool = False,
    own_pages: bool = False,
    reserved_mib: int = 0,
) -> Needs:
    """What the machine of this memory and these limits needs.

    ``restored``: from a template; ``own_pages``: its memory is of the host's huge pages, which the kernel does not
    count as memory; ``reserved_mib``: of huge pages that the guest reserves for its first container.
    """
    translated = translated_mib(cpus, one_thread=one_thread) if accel == "tcg" else 0
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
        tasks=_TASKS + (1 if one_thread else cpus),
    )
