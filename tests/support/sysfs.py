"""A sysfs of the test's own, for readers that take ``root=``."""

from __future__ import annotations

import os


class FakeSysfs:
    """Builds /sys and /dev below a directory."""

    def __init__(self, root: str) -> None:
        self.root = root

    def function(
        self, address: str, *, group: int, driver: str = "vfio-pci", class_code: int = 0x020000, resource: str = ""
    ) -> None:
        """A PCI function in a group; "" for no driver."""
        device = f"{self.root}/sys/bus/pci/devices/{address}"
        os.makedirs(device)
        members = f"{self.root}/sys/kernel/iommu_groups/{group}/devices"
        os.makedirs(members, exist_ok=True)
        os.symlink(device, f"{members}/{address}")
        os.symlink(f"../../../../kernel/iommu_groups/{group}", f"{device}/iommu_group")
        texts = {"vendor": "0x8086", "device": "0x10d3", "class": f"{class_code:#08x}", "resource": resource}
        for name, text in {**texts, "driver_override": "(null)"}.items():
            self.write(f"sys/bus/pci/devices/{address}/{name}", f"{text.strip()}\n" if text else "")
        if driver:
            self.bind(address, driver)

    def bind(self, address: str, driver: str) -> None:
        """Give a function to a driver."""
        os.makedirs(f"{self.root}/sys/bus/pci/drivers/{driver}", exist_ok=True)
        os.symlink(f"../../drivers/{driver}", f"{self.root}/sys/bus/pci/devices/{address}/driver")

    def node(self, group: int, major: int, minor: int) -> None:
        """The group's character device."""
        self.write(f"sys/class/vfio/{group}/dev", f"{major}:{minor}\n")
        self.write(f"dev/vfio/{group}", "")
        self.character_device(major, minor, f"../../devices/virtual/vfio/{group}")

    def character_device(self, major: int, minor: int, target: str) -> None:
        """An entry of /sys/dev/char."""
        os.makedirs(f"{self.root}/sys/dev/char", exist_ok=True)
        os.symlink(target, f"{self.root}/sys/dev/char/{major}:{minor}")

    def write(self, path: str, text: str) -> None:
        """A file."""
        full = f"{self.root}/{path}"
        os.makedirs(os.path.dirname(full), exist_ok=True)
        with open(full, "w") as file:
            file.write(text)
