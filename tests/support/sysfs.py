"""A fake sysfs for functions with a parameter ``root``."""

from __future__ import annotations

import os


class FakeSysfs:
    """Builds /sys and /dev below a directory."""

    def __init__(self, root: str) -> None:
        self.root = root

    def function(
        self,
        address: str,
        *,
        group: int,
        driver: str = "vfio-pci",
        class_code: int = 0x020000,
        resource: str = "",
        device_id: int = 0x10D3,
        header: int | None = None,
        behind: str = "",
        resets: str | None = None,
    ) -> None:
        """Add a PCI function of Intel in a group. Driver "": none. With a header type its configuration space exists.

        ``behind``: the bridge above its bus, "" on a root bus. ``resets``: its reset methods; None: it has a reset,
        but the kernel does not show which; "none": it has no reset.
        """
        device = f"{self.root}/sys/bus/pci/devices/{address}"
        if behind:
            os.makedirs(f"{self.root}/sys/devices/pci0000:00/{behind}/{address}")
            self.link(f"sys/bus/pci/devices/{address}", f"../../../devices/pci0000:00/{behind}/{address}")
        else:
            os.makedirs(device)
        if resets != "none":
            self.write(f"sys/bus/pci/devices/{address}/reset", "")
        if resets not in (None, "none"):
            self.write(f"sys/bus/pci/devices/{address}/reset_method", f"{resets}\n")
        self.member(group, address, device)
        if header is not None:
            with open(f"{device}/config", "wb") as file:
                file.write(bytes(0x0E) + bytes([header]) + bytes(0x31))
        os.symlink(f"../../../../kernel/iommu_groups/{group}", f"{device}/iommu_group")
        modalias = f"pci:v00008086d{device_id:08X}sv00001AF4sd00001100bc02sc00i00"
        texts = {"vendor": "0x8086", "device": f"{device_id:#06x}", "class": f"{class_code:#08x}"}
        texts |= {"resource": resource, "modalias": modalias}
        for name, text in {**texts, "driver_override": "(null)"}.items():
            self.write(f"sys/bus/pci/devices/{address}/{name}", f"{text.strip()}\n" if text else "")
        if driver:
            self.bind(address, driver)

    def member(self, group: int, name: str, device: str) -> None:
        """Add an entry to a group."""
        self.link(f"sys/kernel/iommu_groups/{group}/devices/{name}", device)

    def bind(self, address: str, driver: str) -> None:
        """Bind a function to a driver."""
        self.driver(driver)
        os.symlink(f"../../drivers/{driver}", f"{self.root}/sys/bus/pci/devices/{address}/driver")

    def driver(self, name: str) -> None:
        """Add a PCI driver."""
        os.makedirs(f"{self.root}/sys/bus/pci/drivers/{name}", exist_ok=True)

    def below(self, address: str, kind: str, path: str) -> None:
        """Add a device of a class, such as "block" and "nvme/nvme0/nvme0n1", below a PCI function."""
        self.link(f"sys/class/{kind}/{os.path.basename(path)}", f"../../bus/pci/devices/{address}/{path}")
        os.makedirs(f"{self.root}/sys/bus/pci/devices/{address}/{path}")

    def link(self, path: str, target: str) -> None:
        """Create a symbolic link."""
        full = f"{self.root}/{path}"
        os.makedirs(os.path.dirname(full), exist_ok=True)
        os.symlink(target, full)

    def node(self, group: int, major: int, minor: int) -> None:
        """Add a group's character device."""
        self.write(f"sys/class/vfio/{group}/dev", f"{major}:{minor}\n")
        self.write(f"dev/vfio/{group}", "")
        self.character_device(major, minor, f"../../devices/virtual/vfio/{group}")

    def device_file(self, address: str, number: int, major: int, minor: int) -> None:
        """Add a function's device file, and /dev/iommu."""
        self.write(f"sys/bus/pci/devices/{address}/vfio-dev/vfio{number}/dev", f"{major}:{minor}\n")
        self.write(f"dev/vfio/devices/vfio{number}", "")
        self.character_device(major, minor, f"../../devices/pci0000:00/{address}/vfio-dev/vfio{number}")
        if not os.path.exists(f"{self.root}/dev/iommu"):
            self.write("sys/class/misc/iommu/dev", "10:126\n")
            self.write("dev/iommu", "")
            self.character_device(10, 126, "../../devices/virtual/misc/iommu")

    def character_device(self, major: int, minor: int, target: str) -> None:
        """Add an entry to /sys/dev/char."""
        self.link(f"sys/dev/char/{major}:{minor}", target)

    def read(self, address: str, attribute: str) -> str:
        """The current content of a function's file."""
        with open(f"{self.root}/sys/bus/pci/devices/{address}/{attribute}") as file:
            return file.read()

    def write(self, path: str, text: str) -> None:
        """Write a file."""
        full = f"{self.root}/{path}"
        os.makedirs(os.path.dirname(full), exist_ok=True)
        with open(full, "w") as file:
            file.write(text)
