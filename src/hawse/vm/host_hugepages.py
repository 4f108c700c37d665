"""Huge pages of this host: how many are available, and whether they suffice for the memory of a VM."""

from __future__ import annotations

from hawse.errors import HostError

KIB = {"2MB": 2048, "1GB": 1024 * 1024}
_SYSFS = "/sys/kernel/mm/hugepages"


def size_name(kib: int) -> str:
    """A page size as the OCI specification writes it: 2MB for 2048."""
    for unit, factor in (("GB", 1024 * 1024), ("MB", 1024)):
        if kib % factor == 0:
            return f"{kib // factor}{unit}"
    return f"{kib}KB"


def count(kib: int, *, root: str = "") -> tuple[int, int]:
    """Number of huge pages of that size, and how many are free and not reserved; (0, 0) where the size is unsupported.

    The kernel counts pages that are mapped and not touched yet as free and as reserved (Linux
    Documentation/admin-guide/mm/hugetlbpage.rst, HugePages_Rsvd).
    """
    directory = f"{root}{_SYSFS}/hugepages-{kib}kB"
    numbers = []
    for name in ("nr_hugepages", "free_hugepages", "resv_hugepages"):
        try:
            with open(f"{directory}/{name}") as file:
                numbers.append(int(file.read(64)))
        except (OSError, ValueError):
            numbers.append(0)
    total, free, reserved = numbers
    return total, max(free - reserved, 0)


def round_up(memory_mib: int, kib: int) -> int:
    """MiB, rounded up to whole pages; ``kib`` 0: ordinary pages."""
    page_mib = max(kib // 1024, 1)
    return -(-memory_mib // page_mib) * page_mib


def check(memory_mib: int, kib: int, *, root: str = "") -> None:
    """Raise :class:`HostError` unless so much memory is available in pages of that size."""
    total, free = count(kib, root=root)
    needed = memory_mib * 1024 // kib
    if free < needed:
        raise HostError(
            f"the virtual machine's memory takes {needed} huge pages of {size_name(kib)}, and {free} of this host's "
            f"{total} are free",
            hint=f"{remedy(kib, total + needed - free)}, or clear vm.hugepages in the configuration",
        )


def remedy(kib: int, pages: int) -> str:
    """How the administrator reserves this number of huge pages."""
    if kib == KIB["2MB"]:
        return f"sysctl vm.nr_hugepages={pages}"
    return f"echo {pages} >{_SYSFS}/hugepages-{kib}kB/nr_hugepages, or hugepages={pages} on the kernel's command line"
