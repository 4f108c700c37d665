"""Checks of what the host gives devices away with: its IOMMU, VFIO, locked memory, huge pages. All take ``root=``."""

from __future__ import annotations

import os

from hawse.doctor.check import MISSING, OK, WARNING, Finding
from hawse.vfio import dma, inventory, memlock, sysfs, widths
from hawse.vfio import interrupts as isolation
from hawse.vfio.obstacles import NOTHING, Accepted
from hawse.vm import hugepages as pages


def iommu(*, root: str = "") -> Finding:
    """Is it on? Then there are groups."""
    count = _count_groups(root)
    if count:
        return Finding("IOMMU", OK, f"on: {count} {'group' if count == 1 else 'groups'}", needed="devices")
    return Finding(
        "IOMMU", MISSING, "off, or there is none: no device of this host can be passed",
        "turn VT-d or AMD-Vi on in the firmware, and intel_iommu=on on the kernel's command line; or emulate groups: "
        "[emulated] in the configuration",
        needed="devices",
    )  # fmt: skip


def interrupts(*, accepted: bool = False, root: str = "") -> Finding:
    """Are they remapped? Without, VFIO refuses devices, or hawse does; ``accepted``: the configuration accepts that."""
    name = "interrupt remapping"
    if not _count_groups(root):
        return Finding(name, OK, "of no matter without an IOMMU")
    state, module = isolation.remapped(root=root), isolation.unsafe_module(root=root)
    if state:
        unused = f"; allow_unsafe_interrupts of the module {module} has no effect" if module else ""
        return Finding(name, OK, f"on{unused}", needed="devices")
    able = isolation.capable(root=root)
    why = ", since not all of the IOMMUs can" if not all(able) else ""
    found = "this kernel does not tell" if state is None else f"off{why}"
    turn_on = (
        "turn it on in the firmware, with VT-d or AMD-Vi, and take intremap=off and nointremap from the kernel's "
        "command line"
    )
    if module and accepted:
        return Finding(
            name, WARNING, f"{found}, and devices.unsafe_interrupts is true: a device may raise any interrupt on this "
            "host", turn_on,
        )  # fmt: skip
    if module:
        return Finding(
            name, MISSING, f"{found}, and the module {module} allows unsafe interrupts: hawse refuses every device",
            f"{turn_on}, and `echo N > {isolation.parameter(module)}`; or, where all containers are trusted, "
            "devices.unsafe_interrupts = true",
            needed="devices",
        )  # fmt: skip
    if state is False:
        return Finding(
            name, MISSING, f"{found}: VFIO refuses every device",
            f"{turn_on}; or, where all containers are trusted, `modprobe vfio_iommu_type1 allow_unsafe_interrupts=1` "
            "and devices.unsafe_interrupts = true",
            needed="devices",
        )  # fmt: skip
    if able:
        return Finding(name, OK, f"all {len(able)} IOMMUs can; whether it is on, this kernel does not tell")
    return Finding(name, WARNING, found, "see `dmesg | grep -i remapping`")


def vfio(*, root: str = "") -> Finding:
    """Are its modules there?"""
    if not os.path.exists(f"{root}/dev/vfio/vfio"):
        return Finding("VFIO", MISSING, "/dev/vfio/vfio is not there", "modprobe vfio-pci", needed="devices")
    if not os.path.isdir(f"{root}/sys/bus/pci/drivers/vfio-pci"):
        return Finding("VFIO", MISSING, "the driver vfio-pci is not loaded", "modprobe vfio-pci", needed="devices")
    if sysfs.text(f"{root}/sys/module/vfio/parameters/enable_unsafe_noiommu_mode") == "Y":
        return Finding(
            "VFIO", WARNING, "its mode without an IOMMU is on: such devices cannot be given to a virtual machine",
            "clear enable_unsafe_noiommu_mode of the module vfio",
        )  # fmt: skip
    extra = ", /dev/iommu too" if os.path.exists(f"{root}/dev/iommu") else ""
    return Finding("VFIO", OK, f"/dev/vfio/vfio and vfio-pci are there{extra}", needed="devices")


def groups(*, accepted: Accepted = NOTHING, root: str = "") -> Finding:
    """How many could be passed now?"""
    listings = [found for found in inventory.read(root=root, accepted=accepted) if found.number is not None]
    free = [str(listing.number) for listing in listings if not listing.refusal]
    if free:
        return Finding("groups", OK, f"{len(free)} of {len(listings)} can be passed now: {', '.join(free[:40])}")
    if not listings:
        return Finding("groups", OK, "there are none")
    return Finding("groups", WARNING, f"none of {len(listings)} can be passed now", "`hawse devices` says why")


def locked_memory(limit: int, capabilities: int, *, confined: bool) -> Finding:
    """May QEMU lock what a guest maps for its devices?"""
    warning = memlock.warning(limit, capabilities, confined=confined)
    if not warning:
        return Finding("locked memory", OK, "without a limit")
    return _warned("locked memory", warning)


def dma_mappings(memory_mib: int, *, root: str = "") -> Finding:
    """May programs map each page of a VM of this size for a device?"""
    name, limit, needed = "DMA mappings", dma.limit(root=root), dma.entries(memory_mib)
    if limit < 0:
        return Finding(name, OK, "the module vfio_iommu_type1 is not loaded")
    if limit >= needed:
        return Finding(name, OK, f"{limit} pages for each device")
    if not (warning := dma.warning(needed, root=root)):
        return Finding(name, OK, f"{limit} pages for each device; hawse raises dma_entry_limit to {needed}")
    return _warned(name, warning)


def dma_addresses(*, root: str = "") -> Finding:
    """Which IOVAs may programs use?"""
    name = "DMA addresses"
    if warning := widths.warning(root=root):
        return _warned(name, warning)
    return Finding(
        name, OK, f"{widths.address_bits(root=root)} bits" if _count_groups(root) else "no IOMMU limits them"
    )


def hugepages(*, page_kib: int = 0, memory_mib: int = 0, root: str = "") -> Finding:
    """How many are there? They are needed where a machine's memory, of so many MiB, is to be made of those."""
    found = []
    for name in sorted(sysfs.entries(f"{root}/sys/kernel/mm/hugepages")):
        kib = name.removeprefix("hugepages-").removesuffix("kB")
        total, free = pages.count(int(kib), root=root) if kib.isdigit() else (0, 0)
        if total:
            found.append(f"{free} of {total} of {kib}kB are free")
    said = "; ".join(found) or "none are reserved on this host"
    if not page_kib:
        return Finding("huge pages", OK, said if found else f"{said}, and none are needed")
    total, free = pages.count(page_kib, root=root)
    wanted = pages.round_up(memory_mib, page_kib) * 1024 // page_kib
    if free >= wanted:
        return Finding("huge pages", OK, f"{said}; a machine takes {wanted}", needed="containers")
    return Finding(
        "huge pages", WARNING if total >= wanted else MISSING,
        f"{said}; a machine takes {wanted} of {pages.size_name(page_kib)}",
        f"{pages.remedy(page_kib, total + wanted - free)}; or clear vm.hugepages in the configuration",
        needed="containers",
    )  # fmt: skip


def _warned(name: str, warning: str) -> Finding:
    """The finding of a warning that ends with its remedy in brackets."""
    sentence, _, remedy = warning.partition(" [")
    return Finding(name, WARNING, sentence, remedy.removesuffix("]"))


def _count_groups(root: str) -> int:
    """How many there are, but for those that VFIO makes itself, without an IOMMU."""
    numbers = [int(name) for name in sysfs.entries(f"{root}/sys/kernel/iommu_groups") if name.isdigit()]
    return len([number for number in numbers if not sysfs.lacks_iommu(number, root=root)])
