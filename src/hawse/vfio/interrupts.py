"""Whether the host remaps interrupts, and if not, whether VFIO passes devices anyway. All functions take ``root=``.

A device raises an interrupt by a write to memory (MSI). Without remapping, a program that controls the device can raise
any interrupt of the host, so VFIO refuses such a device unless allow_unsafe_interrupts is set (Linux
drivers/vfio/vfio_iommu_type1.c, vfio_iommu_type1_attach_group(); drivers/iommu/iommufd/device.c,
iommufd_device_bind()). The kernel decides by the interrupt domains of the group's devices (drivers/iommu/iommu.c,
iommu_group_has_isolated_msi()). Userspace cannot read these domains, but it can read the names of the interrupt
controllers. On x86, remapping is on for all devices behind an IOMMU, or for none.
"""

from __future__ import annotations

from collections.abc import Sequence

from hawse.errors import DeviceError
from hawse.vfio import sysfs

#: The modules with the parameter allow_unsafe_interrupts. QEMU uses the first for group nodes, the second for device
#: files.
MODULES = ("vfio_iommu_type1", "iommufd")
#: Extended capability register of an Intel IOMMU, bit 3: interrupt remapping (VT-d specification 4.1, 11.4.3).
_CAPABLE = 1 << 3
#: How the names of the kernel's interrupt controllers begin with remapping, and the name of an x86 controller without
#: it (Linux arch/x86/kernel/apic/io_apic.c, drivers/iommu/intel/irq_remapping.c, drivers/iommu/amd/iommu.c).
_REMAPPED, _NOT_REMAPPED = ("IR-", "vIR-"), "IO-APIC"


def remapped(*, root: str = "") -> bool | None:
    """Whether interrupts are remapped; None if sysfs does not show it."""
    # Linux Documentation/ABI/testing/sysfs-kernel-irq
    chips = {
        sysfs.text(f"{root}/sys/kernel/irq/{number}/chip_name") for number in sysfs.entries(f"{root}/sys/kernel/irq")
    }
    if any(chip.startswith(_REMAPPED) for chip in chips):
        return True
    # If one IOMMU cannot remap interrupts, the kernel does not enable it on any (intel_prepare_irq_remapping()).
    return False if _NOT_REMAPPED in chips or not all(capable(root=root)) else None


def capable(*, root: str = "") -> list[bool]:
    """For each Intel IOMMU, whether it can remap interrupts."""
    capabilities = []
    for unit in sysfs.entries(f"{root}/sys/class/iommu"):
        try:
            register = int(sysfs.text(f"{root}/sys/class/iommu/{unit}/intel-iommu/ecap"), 16)
        except ValueError:
            continue
        capabilities.append(bool(register & _CAPABLE))
    return capabilities


def unsafe_module(*, root: str = "") -> str:
    """The first of MODULES whose allow_unsafe_interrupts is on; "" for none."""
    for module in MODULES:
        if sysfs.text(parameter(module, root=root)) == "Y":
            return module
    return ""


def parameter(module: str, *, root: str = "") -> str:
    """The path of a module's allow_unsafe_interrupts."""
    return f"{root}/sys/module/{module}/parameters/allow_unsafe_interrupts"


def check(group: int, addresses: Sequence[str], *, accepted: bool, root: str = "") -> None:
    """Raise :class:`DeviceError` if VFIO would pass a group's functions although interrupts are not remapped.

    If sysfs does not show whether they are remapped, this assumes that they are not. ``accepted``: an administrator
    accepts unsafe interrupts.
    """
    module = unsafe_module(root=root)
    if accepted or not module:
        return
    state = remapped(root=root)
    if state:
        return
    clear = f"`echo N > {parameter(module)}`"
    if state is None:
        why = "sysfs does not show whether this host remaps interrupts"
        remedy = f"look for remapping in `dmesg`: if it is enabled, {clear}; otherwise enable it in the firmware"
    else:
        why = "this host does not remap interrupts"
        remedy = (
            "enable interrupt remapping in the firmware, with VT-d or AMD-Vi, and remove intremap=off and nointremap "
        )
        remedy += "from the kernel's command line"
    raise DeviceError(
        f"group {group} ({', '.join(addresses)}) cannot be passed: {why}, and allow_unsafe_interrupts of the module "
        f"{module} turns off VFIO's check: the device could raise any interrupt on this host",
        hint=f"{remedy}; or, if all containers are trusted, set devices.unsafe_interrupts = true",
    )
