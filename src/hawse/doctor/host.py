"""Checks of what the host gives devices away with: its IOMMU, VFIO, locked memory, huge pages. All take ``root=``."""

from __future__ import annotations

import os

from hawse.doctor.check import MISSING, OK, WARNING, Finding
from hawse.vfio import inventory, memlock, sysfs
from hawse.vm import hugepages as pages

#: Extended capability register of an Intel IOMMU, bit 3: it remaps interrupts (VT-d specification 4.1, 11.4.3).
_INTERRUPT_REMAPPING = 1 << 3
#: How the kernel's interrupt controllers are called where interrupts are remapped (Linux arch/x86/kernel/apic/
#: io_apic.c, drivers/iommu/intel/irq_remapping.c, drivers/iommu/amd/iommu.c), and where those of an x86 are not.
_REMAPPED, _NOT_REMAPPED = ("IR-", "vIR-"), "IO-APIC"


def iommu(*, root: str = "") -> Finding:
    """Is it on? Then there are groups."""
    count = _count_groups(root)
    if count:
        return Finding("IOMMU", OK, f"on: {count} groups", needed="devices")
    return Finding(
        "IOMMU", MISSING, "off, or there is none: no device of this host can be passed",
        "turn VT-d or AMD-Vi on in the firmware, and intel_iommu=on on the kernel's command line; or emulate groups: "
        "[emulated] in the configuration",
        needed="devices",
    )  # fmt: skip


def interrupts(*, root: str = "") -> Finding:
    """Are they remapped? Without, VFIO refuses devices, or trusts them blindly."""
    name = "interrupt remapping"
    for module in ("vfio_iommu_type1", "iommufd"):
        if _read(f"{root}/sys/module/{module}/parameters/allow_unsafe_interrupts") == "Y":
            return Finding(
                name, WARNING, "VFIO is told to do without: a device may send any interrupt to this host",
                f"clear allow_unsafe_interrupts of the module {module}",
            )  # fmt: skip
    if not _count_groups(root):
        return Finding(name, OK, "of no matter without an IOMMU")
    # Linux Documentation/ABI/testing/sysfs-kernel-irq
    chips = {_read(f"{root}/sys/kernel/irq/{number}/chip_name") for number in _list(f"{root}/sys/kernel/irq")}
    if any(chip.startswith(_REMAPPED) for chip in chips):
        return Finding(name, OK, "on", needed="devices")
    able = _able(root)
    # One that cannot has the kernel leave it off for all of them (intel_prepare_irq_remapping()).
    why = "" if all(able) else ", since not all of the IOMMUs can"
    if _NOT_REMAPPED in chips or why:
        return Finding(
            name, MISSING, f"off{why}: VFIO refuses every device",
            "turn it on in the firmware, with VT-d or AMD-Vi, and take intremap=off and nointremap from the kernel's "
            "command line; or, where all containers are trusted, `modprobe vfio_iommu_type1 allow_unsafe_interrupts=1`",
            needed="devices",
        )  # fmt: skip
    if able:
        return Finding(name, OK, f"all {len(able)} IOMMUs can; whether it is on, this kernel does not tell")
    return Finding(name, WARNING, "this kernel does not tell", "see `dmesg | grep -i remapping`")


def vfio(*, root: str = "") -> Finding:
    """Are its modules there?"""
    if not os.path.exists(f"{root}/dev/vfio/vfio"):
        return Finding("VFIO", MISSING, "/dev/vfio/vfio is not there", "modprobe vfio-pci", needed="devices")
    if not os.path.isdir(f"{root}/sys/bus/pci/drivers/vfio-pci"):
        return Finding("VFIO", MISSING, "the driver vfio-pci is not loaded", "modprobe vfio-pci", needed="devices")
    if _read(f"{root}/sys/module/vfio/parameters/enable_unsafe_noiommu_mode") == "Y":
        return Finding(
            "VFIO", WARNING, "its mode without an IOMMU is on: such devices cannot be given to a virtual machine",
            "clear enable_unsafe_noiommu_mode of the module vfio",
        )  # fmt: skip
    extra = ", /dev/iommu too" if os.path.exists(f"{root}/dev/iommu") else ""
    return Finding("VFIO", OK, f"/dev/vfio/vfio and vfio-pci are there{extra}", needed="devices")


def groups(*, root: str = "") -> Finding:
    """How many could be passed now?"""
    listings = [listing for listing in inventory.read(root=root) if listing.number is not None]
    free = [str(listing.number) for listing in listings if not listing.refusal]
    if free:
        return Finding("groups", OK, f"{len(free)} of {len(listings)} can be passed now: {', '.join(free[:40])}")
    if not listings:
        return Finding("groups", OK, "there are none")
    return Finding("groups", WARNING, f"none of {len(listings)} can be passed now", "`hawse devices` says why")


def locked_memory(limit: int, capabilities: int) -> Finding:
    """May QEMU lock what a guest maps for its devices?"""
    warning = memlock.warning(limit, capabilities)
    if not warning:
        return Finding("locked memory", OK, "without a limit")
    sentence, _, remedy = warning.partition(" [")
    return Finding("locked memory", WARNING, sentence, remedy.removesuffix("]"))


def hugepages(*, page_kib: int = 0, memory_mib: int = 0, root: str = "") -> Finding:
    """How many are there? They are needed where a machine's memory, of so many MiB, is to be made of those."""
    found = []
    for name in sorted(_list(f"{root}/sys/kernel/mm/hugepages")):
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


def _count_groups(root: str) -> int:
    """How many there are, but for those that VFIO makes itself, without an IOMMU."""
    numbers = [int(name) for name in _list(f"{root}/sys/kernel/iommu_groups") if name.isdigit()]
    return len([number for number in numbers if not sysfs.lacks_iommu(number, root=root)])


def _able(root: str) -> list[bool]:
    """Of each IOMMU of Intel's, whether it can remap interrupts."""
    found = []
    for unit in _list(f"{root}/sys/class/iommu"):
        try:
            register = int(_read(f"{root}/sys/class/iommu/{unit}/intel-iommu/ecap"), 16)
        except ValueError:
            continue
        found.append(bool(register & _INTERRUPT_REMAPPING))
    return found


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read(256).strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _list(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []
