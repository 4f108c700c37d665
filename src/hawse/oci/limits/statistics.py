"""A container's statistics in runc's JSON, from the files of its cgroup in the guest. Pure.

The shape is runc's types/events.go with its omissions of zeros; what the files mean, Linux's
Documentation/admin-guide/cgroup-v2.rst; which becomes which, runc's libcontainer/cgroups/fs2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

#: The greatest number that engines read: they decode into Go's uint64.
_MOST = 2**64 - 1
_LINES = 1000


def convert(files: Mapping[str, str]) -> dict[str, Any]:
    """The statistics from the texts of files, by their names, as the guest reports them; what is no number is 0."""
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


#: Those that runc prints always; under cgroup v2 it fills none of them.
_CPUSET = (
    "cpu_exclusive", "mem_hardwall", "mem_exclusive", "memory_migrate", "memory_spread_page", "memory_spread_slab",
    "memory_pressure", "sched_load_balance", "sched_relax_domain_level",
)  # fmt: skip


def _cpu(stat: Mapping[str, int]) -> dict[str, Any]:
    """In nanoseconds, where the file has microseconds."""
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


def _memory(files: Mapping[str, str]) -> dict[str, Any]:
    raw = _table(files.get("memory.stat", ""))
    used, limit = _number(files.get("memory.current")), _number(files.get("memory.max"))
    failures = _table(files.get("memory.events", "")).get("max", 0)
    swap_limit = _number(files.get("memory.swap.max"))
    # runc's swap is memory and swap together, as cgroup v1 has it.
    swap = _some(usage=min(used + _number(files.get("memory.swap.current")), _MOST))
    return _some(cache=raw.get("file", 0), raw=raw) | {
        "usage": _some(usage=used, max=_number(files.get("memory.peak")))
        | {"limit": limit or _MOST, "failcnt": failures},
        "swap": swap | {"limit": min(swap_limit + limit, _MOST), "failcnt": 0},
        "kernel": {"limit": 0, "failcnt": 0},
        "kernelTCP": {"limit": 0, "failcnt": 0},
    }


def _blkio(text: str) -> dict[str, Any]:
    sizes: list[dict[str, Any]] = []
    counts: list[dict[str, Any]] = []
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


def _hugetlb(files: Mapping[str, str]) -> dict[str, Any]:
    # A size becomes a label of engines' metrics: text of the guest's own choice has no place there.
    sizes = [found[1] for name in files if (found := re.fullmatch(r"hugetlb\.([0-9]{1,6}[KMG]B)\.current", name))]
    return {
        size: _some(usage=_number(files[f"hugetlb.{size}.current"]))
        | {"failcnt": _table(files.get(f"hugetlb.{size}.events", "")).get("max", 0)}
        for size in sizes[:8]
    }


def _table(text: str) -> dict[str, int]:
    """Lines of a name and a number."""
    words = [line.split() for line in text.splitlines()[:_LINES]]
    return {pair[0][:64]: _number(pair[1]) for pair in words if len(pair) == 2 and pair[0].isidentifier()}


def _number(text: str | None, *, most: int = _MOST) -> int:
    """The number; "max" is ``most``, and what is none is 0."""
    word = (text or "").strip()
    if word == "max":
        return most
    return min(int(word), _MOST) if word.isascii() and word.isdigit() and len(word) <= 20 else 0


def _some(**values: Any) -> dict[str, Any]:
    """Without those that are nought or empty, as Go's omitempty."""
    return {name: value for name, value in values.items() if value}
