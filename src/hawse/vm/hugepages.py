"""Huge pages of this host: how many are to be had, and whether they are enough for a virtual machine's memory."""

from __future__ import annotations

from hawse.errors import HostError

KIB = {"2MB": 2048, "1GB": 1024 * 1024}
_SYSFS = "/sys/kernel/mm/hugepages"


def size_name(kib: int) -> str:
    """2MB for 2048, as the specification writes sizes."""
    for unit, factor in (("GB", 1024 * 1024), ("MB", 1024)):
        if kib % factor == 0:
            return f"{kib // factor}{unit}"
    return f"{kib}KB"


def count(kib: int, *, root: str = "") -> tuple[int, int]:
    """How many pages of that size there are, and how many are free and not promised; none where there is no such size.

    Memory that is mapped and was not touched yet is free and promised (Linux Documentation/admin-guide/mm/
    hugetlbpage.rst, HugePages_Rsvd).
    """
    directory = f"{root}{_SYSFS}/hugepages-{kib}kB"
    numbers = []
    for name in ("nr_hugepages", "free_hugepages", "resv_hugepages"):
        try:
            with open(f"{directory}/{name}") as file:
                numbers.append(int(file.read(64)))
        except (OSError, ValueError):
            numbers.append(0)
    total, free, promised = numbers
    return total, max(free - promised, 0)


def round_up(memory_mib: int, kib: int) -> int:
    """MiB in whole pages; ``kib`` 0: of the ordinary ones."""
    page_mib = max(kib // 1024, 1)
    return -(-memory_mib // page_mib) * page_mib


def check(memory_mib: int, kib: int, *, root: str = "") -> None:
    """Raise :class:`HostError` unless so much memory can be had in pages of that size."""
    total, free = count(kib, root=root)
    wanted = memory_mib * 1024 // kib
    if free < wanted:
        raise HostError(
            f"the virtual machine's memory takes {wanted} huge pages of {size_name(kib)}, and {free} of this host's "
            f"{total} are free",
            hint=f"{remedy(kib, total + wanted - free)}, or clear vm.hugepages in the configuration",
        )


def remedy(kib: int, wanted: int) -> str:
    """How a host comes to have so many of them."""
    if kib == KIB["2MB"]:
        return f"sysctl vm.nr_hugepages={wanted}"
    return f"echo {wanted} >{_SYSFS}/hugepages-{kib}kB/nr_hugepages, or hugepages={wanted} on the kernel's command line"
