"""Check the host's means of passing devices: IOMMU, VFIO, locked memory, huge pages. Most functions take ``root=``."""

from __future__ import annotations

import os

from hawse.doctor.check import MISSING, OK, WARNING, Finding
from hawse.vfio import interrupts as isolation
from hawse.vfio import inventory, sysfs
from hawse.vfio.host import dma_mappings as dma
from hawse.vfio.host import dma_width
from hawse.vfio.host import locked_memory as memlock
from hawse.vfio.obstacles import NOTHING, Accepted
from hawse.vm import host_hugepages as pages

_IRRELEVANT = "irrelevant without an IOMMU"


def iommu(*, root: str = "") -> Finding:
    """Check that the IOMMU is on: then there are groups."""
    count = _count_groups(root)
    if count:
        return Finding("IOMMU", OK, f"on: {count} {'group' if count == 1 else 'groups'}", needed="devices")
    return Finding(
        "IOMMU", MISSING, "off or missing",
        "enable VT-d or AMD-Vi in the firmware, and set intel_iommu=on on the kernel's command line; or use emulated "
        "groups: [emulated] in the configuration",
        needed="devices",
    )  # fmt: skip


def interrupts(*, accepted: bool = False, root: str = "") -> Finding:
    """Check that interrupts are remapped. If they are not, VFIO or hawse refuses devices.

    ``accepted``: the configuration accepts devices without interrupt remapping.
    """
    name = "interrupt remapping"
    if not _count_groups(root):
        return Finding(name, OK, _IRRELEVANT)
    state, module = isolation.remapped(root=root), isolation.unsafe_module(root=root)
    if state:
        unused = f"; allow_unsafe_interrupts of the module {module} has no effect" if module else ""
        return Finding(name, OK, f"on{unused}", needed="devices")
    able = isolation.capable(root=root)
    why = ", because not all of the IOMMUs support it" if not all(able) else ""
    found = "sysfs does not show whether it is on" if state is None else f"off{why}"
    enable = (
        "enable it in the firmware, with VT-d or AMD-Vi, and remove intremap=off and nointremap from the kernel's "
        "command line"
    )
    if module and accepted:
        return Finding(
            name, WARNING, f"{found}, and devices.unsafe_interrupts is true: a device may raise any interrupt on this "
            "host", enable, needed="devices",
        )  # fmt: skip
    if module:
        return Finding(
            name, MISSING, f"{found}, and the module {module} allows unsafe interrupts: hawse refuses every device",
            f"{enable}, and run `echo N > {isolation.parameter(module)}`; or, if all containers are trusted, set "
            "devices.unsafe_interrupts = true",
            needed="devices",
        )  # fmt: skip
    if state is False:
        return Finding(
            name, MISSING, f"{found}: VFIO refuses every device",
            f"{enable}; or, if all containers are trusted, run `modprobe vfio_iommu_type1 allow_unsafe_interrupts=1` "
            "and set devices.unsafe_interrupts = true",
            needed="devices",
        )  # fmt: skip
    if able:
        return Finding(name, OK, f"all {len(able)} IOMMUs support it; sysfs does not show whether it is on")
    return Finding(name, WARNING, found, "see `dmesg | grep -i remapping`", needed="devices")


def vfio(*, root: str = "") -> Finding:
    """Check that the modules of VFIO are loaded."""
    if not os.path.exists(f"{root}/dev/vfio/vfio"):
        return Finding("VFIO", MISSING, "/dev/vfio/vfio does not exist", "`modprobe vfio-pci`", needed="devices")
    if not os.path.isdir(f"{root}/sys/bus/pci/drivers/vfio-pci"):
        return Finding("VFIO", MISSING, "the driver vfio-pci is not loaded", "`modprobe vfio-pci`", needed="devices")
    if sysfs.text(f"{root}/sys/module/vfio/parameters/enable_unsafe_noiommu_mode") == "Y":
        return Finding(
            "VFIO", WARNING, "its no-IOMMU mode is on: devices without an IOMMU cannot be passed to a VM",
            "clear the parameter enable_unsafe_noiommu_mode of the module vfio", needed="devices",
        )  # fmt: skip
    extra = ", and /dev/iommu" if os.path.exists(f"{root}/dev/iommu") else ""
    return Finding("VFIO", OK, f"available: /dev/vfio/vfio, vfio-pci{extra}", needed="devices")


def groups(*, accepted: Accepted = NOTHING, root: str = "") -> Finding:
    """Count the groups that can be passed now."""
    listings = [listing for listing in inventory.read(root=root, accepted=accepted) if listing.number is not None]
    free = [str(listing.number) for listing in listings if not listing.refusal]
    if free:
        return Finding("groups", OK, f"{len(free)} of {len(listings)} can be passed now: {', '.join(free[:40])}")
    if not listings:
        return Finding("groups", OK, "this host has none")
    found = f"none of {len(listings)} can be passed now"
    return Finding("groups", WARNING, found, "`hawse devices` lists the reasons", needed="devices")


def locked_memory(limit: int, capabilities: int, *, confined: bool, root: str = "") -> Finding:
    """Check that QEMU may lock the memory that a guest maps for its devices."""
    if not _count_groups(root):
        return Finding("locked memory", OK, _IRRELEVANT)
    warning = memlock.warning(limit, capabilities, confined=confined)
    if not warning:
        return Finding("locked memory", OK, "no limit")
    return _warned("locked memory", warning)


def dma_mappings(memory_mib: int, *, root: str = "") -> Finding:
    """Check that programs can map each page of a VM of this size, in MiB, for a device."""
    name, limit, needed = "DMA mappings", dma.limit(root=root), dma.entries(memory_mib)
    if not _count_groups(root):
        return Finding(name, OK, _IRRELEVANT)
    if limit < 0:
        return Finding(name, OK, "the module vfio_iommu_type1 is not loaded")
    if limit >= needed:
        return Finding(name, OK, f"{limit} pages for each device")
    if not (warning := dma.warning(needed, root=root)):
        return Finding(name, OK, f"{limit} pages for each device; hawse raises dma_entry_limit to {needed}")
    return _warned(name, warning)


def dma_addresses(*, root: str = "") -> Finding:
    """Check the width of the DMA addresses (IOVAs) that programs may use."""
    name = "DMA addresses"
    if warning := dma_width.warning(root=root):
        return _warned(name, warning)
    return Finding(
        name, OK, f"{dma_width.address_bits(root=root)} bits" if _count_groups(root) else "no IOMMU limits them"
    )


def hugepages(*, page_kib: int = 0, memory_mib: int = 0, root: str = "") -> Finding:
    """Count the huge pages of the host.

    With ``page_kib``, the memory of a VM, ``memory_mib``, is backed by huge pages of this size: check that enough of
    them are free.
    """
    counts = []
    for name in sorted(sysfs.entries(f"{root}/sys/kernel/mm/hugepages")):
        kib = name.removeprefix("hugepages-").removesuffix("kB")
        total, free = pages.count(int(kib), root=root) if kib.isdigit() else (0, 0)
        if total:
            counts.append(f"{free} of {total} of {kib}kB are free")
    summary = "; ".join(counts) or "none are reserved on this host"
    if not page_kib:
        return Finding("huge pages", OK, summary if counts else f"{summary}, and none are needed")
    total, free = pages.count(page_kib, root=root)
    needed = pages.round_up(memory_mib, page_kib) * 1024 // page_kib
    if free >= needed:
        return Finding("huge pages", OK, f"{summary}; a VM needs {needed}", needed="containers")
    return Finding(
        "huge pages", WARNING if total >= needed else MISSING,
        f"{summary}; a VM needs {needed} of {pages.size_name(page_kib)}",
        f"{pages.remedy(page_kib, total + needed - free)}; or clear vm.hugepages in the configuration",
        needed="containers",
    )  # fmt: skip


def _warned(name: str, warning: str) -> Finding:
    """The finding for a warning about devices, which ends with its remedy in brackets."""
    sentence, _, remedy = warning.partition(" [")
    return Finding(name, WARNING, sentence, remedy.removesuffix("]"), needed="devices")


def _count_groups(root: str) -> int:
    """The number of groups, without those that VFIO creates for devices without an IOMMU."""
    numbers = [int(name) for name in sysfs.entries(f"{root}/sys/kernel/iommu_groups") if name.isdigit()]
    return len([number for number in numbers if not sysfs.lacks_iommu(number, root=root)])
