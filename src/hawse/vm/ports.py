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
#: pcie.0 has the host bridge at 00.0, ICH9 at 1f, our own devices at 01 to 0f, the IOMMU none.
FIRST_PORT_SLOT = 0x10
PORTS_PER_SLOT = 8
MAX_PORTS = (0x1F - FIRST_PORT_SLOT) * PORTS_PER_SLOT
#: An I/O window has 4 KiB of the 64 KiB of x86, and firmware needs some itself (QEMU docs/pcie.txt: "about 10").
MAX_IO_PORTS = 10
#: Every machine has them. More would cost each start: address spaces to build, buses to look at.
LEAST_PORTS = 4
#: Where the share is plugged: the first bus, so that the shapes of other ports do not move it.
SHARE_BUS = "port-share"
SHARE_ADDRESS = "0000:01:00.0"
SHARE_PORT: dict[str, Any] = {
    "driver": "pcie-root-port", "id": SHARE_BUS, "bus": "pcie.0", "addr": "4.0", "chassis": 1, "slot": 1,
    "io-reserve": 0,
}  # fmt: skip
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
    """The share's port, then a root port for each group, in order. Raises :class:`DeviceError` when there is no room.

    There are 4, 8, 16... ports, some of them spare: most machines are then of one shape, which one template serves, and
    devices may come later.
    """
    if len(groups) > MAX_PORTS:
        raise DeviceError(f"{len(groups)} VFIO groups, and a virtual machine has {MAX_PORTS} ports for them")
    count = LEAST_PORTS
    while count < len(groups):
        count *= 2
    count = min(count, MAX_PORTS)
    spare_io = count + 1 <= MAX_IO_PORTS
    with_io = [group.number for group in groups if any(function.io for function in group.functions)]
    if not spare_io and len(with_io) > MAX_IO_PORTS:
        raise DeviceError(
            f"{len(with_io)} VFIO groups have I/O BARs, and a virtual machine has I/O windows for {MAX_IO_PORTS}",
            hint=f"pass fewer of the groups {', '.join(map(str, with_io))}",
        )
    bridges: list[dict[str, Any]] = [dict(SHARE_PORT)]
    slots: list[Slot] = []
    bus = 1  # the share's
    for index in range(count):
        group = groups[index] if index < len(groups) else None
        bus += 1
        port = _root_port(index, group, last=index == count - 1, spare_io=spare_io)
        bridges.append(port)
        if group is None:
            continue
        functions = len(group.functions)
        if functions == 1 or group.emulated:
            if functions > 8:
                raise DeviceError(f"emulated group {group.number} has {functions} functions, and a slot has eight")
            # Function 0 comes last: it makes the guest look at the slot, and then it must find all of them.
            for number in reversed(range(functions)):
                address = f"0000:{bus:02x}:00.{number}"
                slots.append(Slot(group.number, number, port["id"], f"0.{number}", functions > 1, address))
        else:
            if functions > 31:
                raise DeviceError(f"group {group.number} has {functions} functions, and a bridge has 31 slots")
            bus += 1
            bridge = f"bridge{index}"
            bridges.append({"driver": "pcie-pci-bridge", "id": bridge, "bus": port["id"], "addr": "0.0"})
            for number in range(functions):
                # Slot 0 is taken by the bridge's own hotplug controller (QEMU hw/pci-bridge/pcie_pci_bridge.c).
                address = f"0000:{bus:02x}:{number + 1:02x}.0"
                slots.append(Slot(group.number, number, bridge, f"{number + 1}.0", False, address))
        if bus > 255:
            raise DeviceError(f"{len(groups)} VFIO groups need more than 255 PCI buses")
    return PortPlan(tuple(bridges), tuple(slots))


def _root_port(index: int, group: GroupShape | None, *, last: bool, spare_io: bool) -> dict[str, Any]:
    slot, function = FIRST_PORT_SLOT + index // PORTS_PER_SLOT, index % PORTS_PER_SLOT
    port: dict[str, Any] = {
        "driver": "pcie-root-port",
        "id": f"port{index}",
        "bus": "pcie.0",
        "addr": f"{slot:x}.{function}",
        "chassis": index + 2,
        "slot": index + 2,
    }
    if function or not last:
        port["multifunction"] = True
    shapes = group.functions if group else ()
    memory = window(size for shape in shapes for size in shape.memory)
    prefetchable = window(size for shape in shapes for size in shape.prefetchable)
    if memory > _MINIMUM_WINDOW:
        port["mem-reserve"] = memory
    if prefetchable > _MINIMUM_WINDOW:
        port["pref64-reserve"] = prefetchable
    if not spare_io and not any(shape.io for shape in shapes):
        port["io-reserve"] = 0
    return port


def window(sizes: Any) -> int:
    """The bytes that BARs of these sizes need in any order, a power of two: each is aligned to its own size."""
    total = sum(max(size, 4096) for size in sizes)
    return 1 << (total - 1).bit_length() if total else 0
