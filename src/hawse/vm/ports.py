"""The port plan: where each VFIO function goes, and where the guest will see it. Pure; decided before QEMU starts.

Facts: a pcie-root-port takes slot 0 only (QEMU hw/pci/pci.c); firmware numbers buses depth-first in the order of the
ports (PCI-to-PCI Bridge 1.2, section 3.1; SeaBIOS src/fw/pciinit.c, pci_bios_init_bus_rec); functions of one slot
without ACS share an IOMMU group, and so do all devices behind a PCIe-to-PCI bridge (Linux drivers/iommu/iommu.c,
pci_device_group). A host group of several functions is one address space for QEMU only behind one requester id, which
is what such a bridge gives it; emulated functions have no such need and keep their PCI Express shape in one slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hawse.errors import DeviceError

MIB = 1024 * 1024
#: pcie.0 has the host bridge at 00.0, ICH9 at 1f, our own virtio devices at 01 to 0f, the IOMMU none.
FIRST_PORT_SLOT = 0x10
PORTS_PER_SLOT = 8
MAX_PORTS = (0x1F - FIRST_PORT_SLOT) * PORTS_PER_SLOT
#: An I/O window has 4 KiB of the 64 KiB of x86, and firmware needs some itself (QEMU docs/pcie.txt: "about 10").
MAX_IO_PORTS = 10
#: What SeaBIOS gives a hotplug port unasked, in bytes.
_MINIMUM_WINDOW = 2 * MIB


@dataclass(frozen=True)
class FunctionShape:
    """The BAR sizes of one function, in bytes: 32-bit or non-prefetchable, 64-bit prefetchable, and I/O in total."""

    memory: tuple[int, ...] = ()
    prefetchable: tuple[int, ...] = ()
    io: int = 0


@dataclass(frozen=True)
class GroupShape:
    """One group of functions that must be one group in the guest."""

    number: int
    functions: tuple[FunctionShape, ...]
    emulated: bool = False


@dataclass(frozen=True)
class Slot:
    """Where function ``index`` of group ``group`` is plugged (``bus``, ``addr``), and its address in the guest."""

    group: int
    index: int
    bus: str
    addr: str
    multifunction: bool
    guest_address: str


@dataclass(frozen=True)
class PortPlan:
    """``bridges``: QEMU devices to start with, as option mappings. ``slots``: in the order of plugging."""

    bridges: tuple[dict[str, Any], ...]
    slots: tuple[Slot, ...]


def plan_ports(groups: Sequence[GroupShape]) -> PortPlan:
    """One root port for each group, in order. Raises :class:`DeviceError` when the machine has no room for them."""
    if len(groups) > MAX_PORTS:
        raise DeviceError(f"{len(groups)} VFIO groups, and a virtual machine has {MAX_PORTS} ports for them")
    with_io = [group.number for group in groups if any(function.io for function in group.functions)]
    if len(with_io) > MAX_IO_PORTS:
        raise DeviceError(
            f"{len(with_io)} VFIO groups have I/O BARs, and a virtual machine has I/O windows for {MAX_IO_PORTS}",
            hint=f"pass fewer of the groups {', '.join(map(str, with_io))}",
        )
    bridges: list[dict[str, Any]] = []
    slots: list[Slot] = []
    bus = 0
    for index, group in enumerate(groups):
        bus += 1
        bridges.append(_root_port(index, group, last=index == len(groups) - 1))
        port = bridges[-1]["id"]
        count = len(group.functions)
        if count == 1 or group.emulated:
            if count > 8:
                raise DeviceError(f"emulated group {group.number} has {count} functions, and a slot has eight")
            # Function 0 comes last: it makes the guest look at the slot, and then it must find all of them.
            for number in reversed(range(count)):
                address = f"0000:{bus:02x}:00.{number}"
                slots.append(Slot(group.number, number, port, f"0.{number}", count > 1, address))
        else:
            if count > 31:
                raise DeviceError(f"group {group.number} has {count} functions, and a bridge has 31 slots")
            bus += 1
            bridge = f"bridge{index}"
            bridges.append({"driver": "pcie-pci-bridge", "id": bridge, "bus": port, "addr": "0.0"})
            for number in range(count):
                # Slot 0 is taken by the bridge's own hotplug controller (QEMU hw/pci-bridge/pcie_pci_bridge.c).
                address = f"0000:{bus:02x}:{number + 1:02x}.0"
                slots.append(Slot(group.number, number, bridge, f"{number + 1}.0", False, address))
        if bus > 255:
            raise DeviceError(f"{len(groups)} VFIO groups need more than 255 PCI buses")
    return PortPlan(tuple(bridges), tuple(slots))


def _root_port(index: int, group: GroupShape, *, last: bool) -> dict[str, Any]:
    slot, function = FIRST_PORT_SLOT + index // PORTS_PER_SLOT, index % PORTS_PER_SLOT
    port: dict[str, Any] = {
        "driver": "pcie-root-port",
        "id": f"port{index}",
        "bus": "pcie.0",
        "addr": f"{slot:x}.{function}",
        "chassis": index + 1,
        "slot": index + 1,
    }
    if function or not last:
        port["multifunction"] = True
    memory = window(size for shape in group.functions for size in shape.memory)
    prefetchable = window(size for shape in group.functions for size in shape.prefetchable)
    if memory > _MINIMUM_WINDOW:
        port["mem-reserve"] = memory
    if prefetchable > _MINIMUM_WINDOW:
        port["pref64-reserve"] = prefetchable
    if not any(shape.io for shape in group.functions):
        port["io-reserve"] = 0
    return port


def window(sizes: Any) -> int:
    """The bytes that BARs of these sizes need in any order, a power of two: each is aligned to its own size."""
    total = sum(max(size, 4096) for size in sizes)
    return 1 << (total - 1).bit_length() if total else 0
