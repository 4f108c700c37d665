"""The numbers of this host's CPUs and memory nodes, from sysfs."""

from __future__ import annotations

import os
import re

_SYSFS = "/sys/devices/system"


def last_number(kind: str, *, root: str = "") -> int:
    """The highest possible number of a "cpu" or a memory "node" of this host, which limits the kernel's lists of them
    (Linux Documentation/admin-guide/cputopology.rst, possible). 0 for nodes of a kernel without NUMA."""
    try:
        with open(f"{root}{_SYSFS}/{kind}/possible") as file:
            return max(map(int, re.findall("[0-9]+", file.read(4096))))
    except (OSError, ValueError):
        return (os.cpu_count() or 1) - 1 if kind == "cpu" else 0
