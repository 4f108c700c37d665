"""Names of PCI devices, from the table that pciutils and hwdata install (pci.ids(5))."""

from __future__ import annotations

import os
from collections.abc import Iterable

PATHS = ("/usr/share/misc/pci.ids", "/usr/share/hwdata/pci.ids")


def is_installed(*, root: str = "") -> bool:
    """Whether this host has the table."""
    return any(os.path.exists(f"{root}{path}") for path in PATHS)


def names(ids: Iterable[tuple[int, int]], *, root: str = "") -> dict[tuple[int, int], str]:
    """The name "Vendor Device" for each (vendor, device) in the table, and the numbers "8086:10d3" for the others."""
    table = {key: f"{key[0]:04x}:{key[1]:04x}" for key in ids}
    for path in PATHS:
        try:
            with open(f"{root}{path}", encoding="utf-8", errors="replace") as file:
                _fill(table, file)
            break
        except OSError:
            continue
    return table


def _fill(table: dict[tuple[int, int], str], lines: Iterable[str]) -> None:
    """Replace the numbers in ``table`` by names.

    The line of a vendor is not indented, those of its devices are indented by one tab, those of subsystems by two.
    """
    vendor, vendor_name = -1, ""
    for line in lines:
        if line.startswith("C "):
            return  # the device classes, which are last in the file
        try:
            if line[:1] not in "\t#\n":
                vendor, vendor_name = int(line[:4], 16), line[4:].strip()[:80]
            elif line[:1] == "\t" and line[1:2] != "\t" and (vendor, device := int(line[1:5], 16)) in table:
                table[vendor, device] = f"{vendor_name} {line[5:].strip()[:80]}"
        except ValueError:
            continue
