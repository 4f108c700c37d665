"""A container's statistics in runc's JSON, from the files of its cgroup in the guest. Pure.

The format is runc's types/events.go, which omits zeros. Linux's Documentation/admin-guide/cgroup-v2.rst describes the
files, and runc's libcontainer/cgroups/fs2 maps them to the fields.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hawse.json_text import Document

#: The greatest number that engines can read: they decode numbers as Go's uint64.
_MOST = 2**64 - 1
_LINES = 1000


def convert(files: Mapping[str, str]) -> Document:
    """Convert the contents of cgroup files, by file name, as the guest reports them. Invalid numbers count as 0."""
    return {
        "cpu": _cpu(_table(files.get("cpu.stat", ""))),
        "cpuset": dict.fromkeys(_CPUSET, 0),
        "memory": _memory(files),
        "pids": _some(current=_number(files.get("pids.current")), limit=_number(files.get("pids.max"), most=0)),
        "blkio": _blkio(files.get("io.stat", "")),
        "hugetlb": _hugetlb(files),
        "intel_rdt": {},
        "network_interfaces": None,
    }


#: Fields that runc always prints; under cgroup v2 they are always 0.
_CPUSET = (
    "cpu_exclusive", "mem_hardwall", "mem_exclusive", "memory_migrate", "memory_spread_page", "memory_spread_slab",
    "memory_pressure", "sched_load_balance", "sched_relax_domain_level",
)  # fmt: skip


def _cpu(stat: Mapping[str, int]) -> Document:
    """CPU statistics in nanoseconds, from microseconds."""
    usage = _some(total=_nanoseconds(stat, "usage_usec")) | {
        "kernel": _nanoseconds(stat, "system_usec"),
        "user": _nanoseconds(stat, "user_usec"),
    }
    throttling = _some(
        periods=stat.get("nr_periods", 0),
        throttledPeriods=stat.get("nr_throttled", 0),
        throttledTime=_nanoseconds(stat, "throttled_usec"),
    )
    return {"usage": usage, "throttling": throttling}


def _nanoseconds(stat: Mapping[str, int], name: str) -> int:
    return min(stat.get(name, 0) * 1000, _MOST)


def _memory(files: Mapping[str, str]) -> Document:
    raw = _table(files.get("memory.stat", ""))
    used, limit = _number(files.get("memory.current")), _number(files.get("memory.max"))
    failures = _table(files.get("memory.events", "")).get("max", 0)
    swap_limit = _number(files.get("memory.swap.max"))
    # runc reports the sum of memory and swap as swap, like cgroup v1.
    swap = _some(usage=min(used + _number(files.get("memory.swap.current")), _MOST))
    return _some(cache=raw.get("file", 0), raw=raw) | {
        "usage": _some(usage=used, max=_number(files.get("memory.peak")))
        | {"limit": limit or _MOST, "failcnt": failures},
        "swap": swap | {"limit": min(swap_limit + limit, _MOST), "failcnt": 0},
        "kernel": {"limit": 0, "failcnt": 0},
        "kernelTCP": {"limit": 0, "failcnt": 0},
    }


def _blkio(text: str) -> Document:
    sizes: list[Document] = []
    counts: list[Document] = []
    for line in text.splitlines()[:_LINES]:
        device, _, rest = line.partition(" ")
        major, _, minor = device.partition(":")
        values = dict(pair.partition("=")[::2] for pair in rest.split())
        for entries, names in ((sizes, _SIZES), (counts, _COUNTS)):
            for operation, name in names.items():
                value = _number(values.get(name))
                entries.append(_some(major=_number(major), minor=_number(minor), op=operation, value=value))
    return _some(ioServiceBytesRecursive=sizes, ioServicedRecursive=counts)


_SIZES = {"Read": "rbytes", "Write": "wbytes", "Discard": "dbytes"}
_COUNTS = {"Read": "rios", "Write": "wios", "Discard": "dios"}


def _hugetlb(files: Mapping[str, str]) -> Document:
    # Engines use the size as a label of metrics: accept only the expected format from the guest.
    sizes = [match[1] for name in files if (match := re.fullmatch(r"hugetlb\.([0-9]{1,6}[KMG]B)\.current", name))]
    return {
        size: _some(usage=_number(files[f"hugetlb.{size}.current"]))
        | {"failcnt": _table(files.get(f"hugetlb.{size}.events", "")).get("max", 0)}
        for size in sizes[:8]
    }


def _table(text: str) -> dict[str, int]:
    """Parse lines that contain a name and a number."""
    words = [line.split() for line in text.splitlines()[:_LINES]]
    return {pair[0][:64]: _number(pair[1]) for pair in words if len(pair) == 2 and pair[0].isidentifier()}


def _number(text: str | None, *, most: int = _MOST) -> int:
    """Parse a number; "max" means ``most``, and invalid text means 0."""
    word = (text or "").strip()
    if word == "max":
        return most
    return min(int(word), _MOST) if word.isascii() and word.isdigit() and len(word) <= 20 else 0


def _some(**values: Any) -> Document:
    """The values that are neither zero nor empty, like Go's omitempty."""
    return {name: value for name, value in values.items() if value}
