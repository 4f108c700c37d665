"""Names of VFIO drivers: vfio-pci, and the kernel's variant drivers such as mlx5_vfio_pci."""

from __future__ import annotations


def is_vfio(driver: str) -> bool:
    """Whether a driver is a VFIO driver, judged by its name (Linux drivers/vfio/pci)."""
    return "vfio" in driver
