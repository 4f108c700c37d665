"""The width of DMA addresses in bits, which the host's IOMMUs limit. All functions take ``root=``.

A guest's vIOMMU must not be wider than the host's IOMMU: QEMU maps each guest IOVA at the same host IOVA (QEMU
hw/i386/intel_iommu.c, vtd_check_hiod()).
"""

from __future__ import annotations

from hawse.vfio import sysfs

#: Widths of QEMU's intel-iommu: a page table with three levels or with four (QEMU hw/i386/intel_iommu.c).
NARROW, WIDE = 39, 48
#: Capability register of an Intel IOMMU: bits 16 to 21 are the maximum guest address width minus 1, bits 8 to 12 the
#: supported page table sizes, of which bit 10 is four levels (VT-d specification 4.1, 11.4.2).
_WIDTH_SHIFT, _WIDTH_MASK, _FOUR_LEVELS = 16, 0x3F, 1 << 10


def address_bits(*, root: str = "") -> int:
    """The address bits that every IOMMU of the host translates, 48 at most; 48 for a host without an IOMMU.

    AMD IOMMUs have at least four levels (AMD I/O Virtualization Technology specification 3.08, 3.4.9, HATS).
    """
    bits = [WIDE]
    for unit in sysfs.entries(f"{root}/sys/class/iommu"):
        try:
            register = int(sysfs.text(f"{root}/sys/class/iommu/{unit}/intel-iommu/cap"), 16)
        except ValueError:
            continue
        levels = WIDE if register & _FOUR_LEVELS else NARROW
        bits.append(min(levels, (register >> _WIDTH_SHIFT & _WIDTH_MASK) + 1))
    return min(bits)


def guest_bits(*, root: str = "") -> int:
    """The width of the guest's vIOMMU, 39 or 48."""
    return WIDE if address_bits(root=root) >= WIDE else NARROW


def warning(*, root: str = "") -> str:
    """A warning about an IOMMU with less than the 48 bits that programs expect; "" if it has 48."""
    bits = address_bits(root=root)
    if bits >= WIDE:
        return ""
    return (
        f"the host's IOMMU has {bits} address bits: mapping memory for DMA at an IOVA of 2^{min(bits, NARROW)} or "
        "above fails with EINVAL [use lower IOVAs in the program: DPDK's --iova-mode=pa, or --base-virtaddr]"
    )
