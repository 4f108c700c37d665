"""The port plan: the port and slot of each VFIO function, and its address in the guest. Pure.

The plan is computed before QEMU starts. Facts:

- A pcie-root-port has slot 0 only (QEMU hw/pci/pci.c).
- Firmware numbers buses depth-first in the order of the ports. After a port it skips as many bus numbers as the port's
  ``bus-reserve`` says (PCI-to-PCI Bridge 1.2, section 3.1; SeaBIOS src/fw/pciinit.c, pci_bios_init_bus_rec).
- Functions of one slot without ACS share an IOMMU group, and so do all devices behind a PCIe-to-PCI bridge (Linux
  drivers/iommu/iommu.c, pci_device_group).
- QEMU gives the functions of a host group one address space only if they share a requester id, as behind a PCIe-to-PCI
  bridge. Emulated functions do not need this: they are PCI Express functions of one slot.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from hawse.errors import DeviceError
from hawse.json_text import Document

MIB = 1024 * 1024
#: The first slot of root ports on pcie.0. The host bridge is at 00.0, ICH9 at 1f, hawse's devices at 01 to 0e; the
#: IOMMU has no slot.
FIRST_PORT_SLOT = 0x0F
PORTS_PER_SLOT = 8
MAX_PORTS = (0x1F - FIRST_PORT_SLOT) * PORTS_PER_SLOT - 2
#: Maximum number of ports with an I/O window. A window takes 4 KiB of x86's 64 KiB, of which firmware needs a part
#: (QEMU docs/pcie.txt: "about 10").
MAX_IO_PORTS = 10
#: The space for the 32-bit windows of all ports, in bytes. It lies between the guest RAM (with 2 GiB below 4 GiB) or
#: the PCI configuration space, and the I/O APIC (QEMU hw/i386/pc_q35.c); the rest is left for hawse's devices.
MAX_MEMORY = 768 * MIB
#: The number of ports that every VM has. More would slow down each start: QEMU builds an address space for each, and
#: the guest scans each bus.
LEAST_PORTS = 4
#: The port of the share.
SHARE_BUS = "port-share"
#: The port of the network interfaces, which are functions of one slot: the VM is the same for any number of interfaces.
NETWORK_BUS = "port-net"
FUNCTIONS = 8
#: The window that SeaBIOS gives a hotplug port by default, in bytes.
_MINIMUM_WINDOW = 2 * MIB
_IO_WINDOW = 4096
#: Ports that are not for VFIO groups.
_OWN = (SHARE_BUS, NETWORK_BUS)


@dataclass(frozen=True)
class FunctionShape:
    """The BAR sizes of one function, in bytes: 32-bit or non-prefetchable, 64-bit prefetchable, and I/O in total."""

    memory: tuple[int, ...] = ()
    prefetchable: tuple[int, ...] = ()
    io: int = 0


@dataclass(frozen=True)
class GroupShape:
    """A group of functions that must share one IOMMU group in the guest; ``bus``: the preferred bus number there."""

    number: int
    functions: tuple[FunctionShape, ...]
    emulated: bool = False
    bus: int | None = None


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
class Port:
    """A root port for a group: its QEMU id, its bus, its windows in bytes, and whether a bridge is plugged into it."""

    name: str
    bus: int
    io: bool
    memory: int
    prefetchable: int
    bridge: bool = False

    @property
    def takes_at(self) -> str:
        """QEMU's id of the bus that functions are plugged into: the bridge's, or the port's."""
        return _bridge_of(self.name) if self.bridge else self.name


@dataclass(frozen=True)
class PortPlan:
    """``bridges``: the ports and bridges that QEMU starts with, as option mappings. ``slots``: in plugging order.

    ``ports``: the ports for devices, used or spare. ``network``: the port for interfaces.
    """

    bridges: tuple[Document, ...]
    slots: tuple[Slot, ...]
    ports: tuple[Port, ...]
    share_address: str
    network: Port


@dataclass
class _Port:
    """A root port in planning: its group, if any, and the number of the bus behind it. A bridge's bus is the next one.

    ``window``: the size of its 64-bit prefetchable window in bytes if it has no group.
    """

    name: str
    group: GroupShape | None = None
    bus: int = 0
    io: bool = False
    window: int = 0
    spare_bridge: bool = False
    properties: Document = field(default_factory=dict)

    @property
    def buses(self) -> int:
        return 2 if self.spare_bridge or (self.group and _needs_bridge(self.group)) else 1

    @property
    def prefetchable(self) -> list[int]:
        """The sizes of the BARs for which the 64-bit window is planned."""
        return _prefetchable_bars(self.group) if self.group else [self.window]


def plan_ports(
    groups: Sequence[GroupShape],
    *,
    least: int = LEAST_PORTS,
    bridges: int = 0,
    spare_window: int = 0,
    disks: int = 0,
) -> PortPlan:
    """Plan the ports: one for the share, one for each group, spare ones, and one for the network.

    A VM has 4, 8, 16... ports for devices, at least ``least``. Up to ``bridges`` of the spare ports contain a bridge.
    So most VMs are alike and can use one template, and devices can be attached later. A group gets its preferred bus
    number; the other ports get the remaining numbers. ``spare_window``: the minimum 64-bit prefetchable window of each
    spare port in bytes, a power of two. ``disks``: how many spare ports without a bridge are needed for disks.
    Raises :class:`DeviceError` when there are not enough ports or windows.
    """
    if len(groups) + disks > MAX_PORTS:
        what = f"{len(groups)} VFIO groups" + (f" and {disks} block devices" if disks else "")
        raise DeviceError(
            f"{what}, and a virtual machine has {MAX_PORTS} ports for them",
            hint="divide them among several containers",
        )
    count = least
    while count < len(groups) + disks + (bridges if disks else 0):
        count *= 2
    count = min(count, MAX_PORTS)
    # I/O windows for all ports if they suffice; otherwise for the groups that need one, then for spare ports.
    all_io = count + 1 <= MAX_IO_PORTS
    _check_capacity(groups, spare_io=all_io)
    # Ports with a bridge come first: a group of several functions needs a bridge.
    spares = sorted(range(len(groups), count), key=lambda index: index < count - bridges)
    spare_io = spares if all_io else spares[: MAX_IO_PORTS - sum(map(_has_io, groups))]
    ports = [_Port(SHARE_BUS)]
    ports += [_Port(f"port{index}", group, io=all_io or _has_io(group)) for index, group in enumerate(groups)]
    ports += [
        _Port(f"port{index}", io=index in spare_io, window=spare_window, spare_bridge=index >= count - bridges)
        for index in range(len(groups), count)
    ]
    ports.append(_Port(NETWORK_BUS))
    _number(ports)
    devices: list[Document] = []
    for index, port in enumerate(ports):
        devices.append(_root_port(index, port, last=index == count + 1))
        if port.buses > 1:
            devices.append({"driver": "pcie-pci-bridge", "id": _bridge_of(port.name), "bus": port.name, "addr": "0.0"})
    by_name = {port.name: port for port in ports}
    return PortPlan(
        bridges=tuple(devices),
        slots=tuple(slot for index in range(len(groups)) for slot in _slots(by_name[f"port{index}"])),
        ports=tuple(_port(port) for port in ports if port.name not in _OWN),
        share_address=f"0000:{by_name[SHARE_BUS].bus:02x}:00.0",
        network=_port(by_name[NETWORK_BUS]),
    )


def place(group: GroupShape, spares: Sequence[Port]) -> tuple[Slot, ...]:
    """Choose a spare port of a running VM for a group; returns its slots. Raises :class:`DeviceError` with the reason.

    The windows of spare ports are minimal. A bridge cannot be added later: ACPI hotplug in the guest supports only
    bridges that the firmware has enumerated (QEMU hw/acpi/pcihp.c).
    """
    bridged = _needs_bridge(group)
    spares = [spare for spare in spares if spare.bridge == bridged]
    if bridged and not spares:
        raise DeviceError(
            f"group {group.number} has {len(group.functions)} functions, which need a bridge, and no bridge can be "
            "added to a running virtual machine",
            hint="name the group when the container is created",
        )
    memory, prefetchable, io = _memory(group), _prefetchable(group), _has_io(group)
    fitting = [s for s in spares if s.memory >= memory and s.prefetchable >= prefetchable and s.io >= io]
    if not fitting:
        windows = f"with a {memory // MIB} MiB window and a {prefetchable // MIB} MiB prefetchable window"
        suffix = f" {windows}{', and with an I/O window,' if io else ''}" if spares else ""
        raise DeviceError(
            f"group {group.number}: no spare port{suffix} is left in the virtual machine",
            hint="detach another group, or name this one when the container is created",
        )
    preferred = [spare for spare in fitting if spare.bus == group.bus]
    # Otherwise the port with the smallest windows that fit: large windows stay free for groups that need them.
    spare = preferred[0] if preferred else min(fitting, key=lambda spare: (spare.prefetchable, spare.memory, spare.bus))
    return _slots(_Port(spare.name, group, spare.bus))


def place_interfaces(count: int, ports: Sequence[Port]) -> tuple[tuple[int, Port, int], ...]:
    """Number, port and function of each interface to plug now, in the order of plugging: function 0 last.

    No function can be added to a slot that has its function 0, so interfaces that are plugged later need another port.
    Raises :class:`DeviceError` when there are too few ports.
    """
    if count > len(ports) * FUNCTIONS:
        raise DeviceError(
            f"{count} network interfaces, and the virtual machine has ports for {len(ports) * FUNCTIONS}",
            hint="use fewer interfaces in the network namespace",
        )
    order = sorted(range(count), key=lambda number: (number // FUNCTIONS, -(number % FUNCTIONS)))
    return tuple((number, ports[number // FUNCTIONS], number % FUNCTIONS) for number in order)


def window(sizes: Iterable[int]) -> int:
    """The window size in bytes for BARs of these sizes in any order, a power of two: a BAR is aligned to its size."""
    total = sum(max(size, 4096) for size in sizes)
    return 1 << (total - 1).bit_length() if total else 0


def reservation(sizes: Sequence[int]) -> int:
    """The bytes to reserve for BARs of these sizes: their window, and what alignment may waste at its beginning.

    Firmware aligns an empty window to 2 MiB, not to the BARs that will be in it (SeaBIOS src/fw/pciinit.c,
    pci_bios_check_devices(), PCI_BRIDGE_MEM_MIN), and a BAR is aligned to its size.
    """
    return window(sizes) + max(max(sizes, default=0) - _MINIMUM_WINDOW, 0)


def _check_capacity(groups: Sequence[GroupShape], *, spare_io: bool) -> None:
    """Raise :class:`DeviceError`, with the groups' numbers, where windows or slots do not suffice."""
    with_io = [group.number for group in groups if _has_io(group)]
    if not spare_io and len(with_io) > MAX_IO_PORTS:
        raise DeviceError(
            f"{len(with_io)} VFIO groups have I/O BARs, and a virtual machine has I/O windows for {MAX_IO_PORTS}",
            hint=f"pass fewer of the groups {', '.join(map(str, with_io))}",
        )
    memory = {group.number: reservation(_memory_bars(group)) for group in groups}
    if sum(memory.values()) > MAX_MEMORY:
        greatest = max(memory, key=memory.__getitem__)
        raise DeviceError(
            f"the 32-bit BARs of the VFIO groups need windows of {sum(memory.values()) // MIB} MiB, and a virtual "
            f"machine has {MAX_MEMORY // MIB} MiB: group {greatest} needs the most, {memory[greatest] // MIB} MiB",
            hint="pass fewer groups in one sandbox",
        )
    for group in groups:
        functions, most = len(group.functions), 8 if group.emulated else 31
        if functions > most:
            place_ = "a slot" if group.emulated else "a bridge"
            raise DeviceError(
                f"group {group.number} has {functions} functions, and {place_} of the guest has {most}",
                hint="a group is passed whole or not at all; with ACS in its bridges the host's groups are smaller",
            )


def _number(ports: list[_Port]) -> None:
    """Assign a bus number to each port, sort the ports by it, and reserve the numbers that stay unused.

    The bus numbers suffice for MAX_PORTS: a port with a bridge takes two; a port with a preferred bus takes it and may
    leave the bus before it unused; the share's and the network's port take one each.
    """
    # Of two groups that prefer the same bus, the first gets it.
    preferred = {p.group.bus: p for p in reversed(ports) if p.group and p.group.bus and p.buses == 1}
    for bus, port in preferred.items():
        port.bus = bus or 0
    bus = 1
    for port in ports:
        if port.bus:
            continue
        while any(bus + offset in preferred for offset in range(port.buses)):
            bus += 1
        port.bus = bus
        bus += port.buses
    ports.sort(key=lambda port: port.bus)
    for port, following in itertools.pairwise(ports):
        unused = following.bus - port.bus - port.buses
        if unused:
            port.properties["bus-reserve"] = following.bus - port.bus - 1


def _root_port(index: int, port: _Port, *, last: bool) -> Document:
    slot, function = FIRST_PORT_SLOT + index // PORTS_PER_SLOT, index % PORTS_PER_SLOT
    device: Document = {
        "driver": "pcie-root-port",
        "id": port.name,
        "bus": "pcie.0",
        "addr": f"{slot:x}.{function}",
        "chassis": index + 1,
        "slot": index + 1,
        # With ACPI hotplug the port never reports an active link. After a bus reset behind a port that is faster than
        # 5 GT/s, Linux waits for an active link and fails; behind a port of 5 GT/s it waits a fixed time (Linux
        # drivers/pci/pci.c, pci_bridge_wait_for_secondary_bus()). The property does not change QEMU's data rate.
        "x-speed": "5",
    }
    if function or not last:
        device["multifunction"] = True
    for name, sizes in (("mem-reserve", _memory_bars(port.group)), ("pref64-reserve", port.prefetchable)):
        if window(sizes) > _MINIMUM_WINDOW:
            device[name] = reservation(sizes)
    if port.buses > 1 and "mem-reserve" in device:
        device["mem-reserve"] += _MINIMUM_WINDOW  # for the BAR of the bridge's hotplug controller
    # Always explicit: firmware gives a PCI Express port no I/O window by default (SeaBIOS src/fw/pciinit.c,
    # pci_bios_check_devices()), and the guest kernel must not assign any (pci=hpiosize=0), since it would give them to
    # the first ports.
    device["io-reserve"] = _IO_WINDOW if port.io else 0
    return device | port.properties


def _slots(port: _Port) -> tuple[Slot, ...]:
    group = port.group
    assert group is not None
    count = len(group.functions)
    if not _needs_bridge(group):
        # Function 0 is plugged last: then the guest scans the slot, and all functions must be present.
        return tuple(
            Slot(group.number, number, port.name, f"0.{number}", count > 1, f"0000:{port.bus:02x}:00.{number}")
            for number in reversed(range(count))
        )
    # Slot 0 belongs to the bridge's hotplug controller (QEMU hw/pci-bridge/pcie_pci_bridge.c).
    return tuple(
        Slot(group.number, n, _bridge_of(port.name), f"{n + 1:x}.0", False, f"0000:{port.bus + 1:02x}:{n + 1:02x}.0")
        for n in range(count)
    )


def _bridge_of(port: str) -> str:
    return port.replace("port", "bridge")


def _port(port: _Port) -> Port:
    memory, prefetchable = max(_memory(port.group), _MINIMUM_WINDOW), max(window(port.prefetchable), _MINIMUM_WINDOW)
    return Port(port.name, port.bus, port.io, memory, prefetchable, bridge=port.buses > 1)


def _needs_bridge(group: GroupShape) -> bool:
    return len(group.functions) > 1 and not group.emulated


def _has_io(group: GroupShape | None) -> bool:
    return group is not None and any(function.io for function in group.functions)


def _memory_bars(group: GroupShape | None) -> list[int]:
    return [size for shape in (group.functions if group else ()) for size in shape.memory]


def _prefetchable_bars(group: GroupShape | None) -> list[int]:
    return [size for shape in (group.functions if group else ()) for size in shape.prefetchable]


def _memory(group: GroupShape | None) -> int:
    return window(_memory_bars(group))


def _prefetchable(group: GroupShape | None) -> int:
    return window(_prefetchable_bars(group))
