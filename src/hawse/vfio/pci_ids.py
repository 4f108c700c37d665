"""Names of PCI devices, from the table that pciutils and hwdata install (pci.ids(5))."""

from __future__ import annotations

from collections.abc import Iterable

PATHS = ("/usr/share/misc/pci.ids", "/usr/share/hwdata/pci.ids")


def names(wanted: Iterable[tuple[int, int]], *, root: str = "") -> dict[tuple[int, int], str]:
    """ "Vendor Device" for each (vendor, device) that the table has; the numbers "8086:10d3" for the others."""
    found = {key: f"{key[0]:04x}:{key[1]:04x}" for key in wanted}
    for path in PATHS:
        try:
            with open(f"{root}{path}", encoding="utf-8", errors="replace") as file:
                _fill(found, file)
            break
        except OSError:
            continue
    return found


def _fill(found: dict[tuple[int, int], str], lines: Iterable[str]) -> None:
    """A vendor's line begins at the margin, its devices' below it with one tab, their subsystems' with two."""
    vendor, vendor_name = -1, ""
    for line in lines:
        if line.startswith("C "):
            return  # the classes, which come last
        try:
            if line[:1] not in "\t#\n":
                vendor, vendor_name = int(line[:4], 16), line[4:].strip()[:80]
            elif line[:1] == "\t" and line[1:2] != "\t" and (vendor, device := int(line[1:5], 16)) in found:
                found[vendor, device] = f"{vendor_name} {line[5:].strip()[:80]}"
        except ValueError:
            continue
