"""The port plan: where each VFIO function goes, and where the guest will see it. Pure; decided before QEMU starts.

Facts: a pcie-root-port takes slot 0 only (QEMU hw/pci/pci.c); firmware numbers buses depth-first in the order of the
ports, and leaves out as many after a port as its ``bus-reserve`` says (PCI-to-PCI Bridge 1.2, section 3.1; SeaBIOS
src/fw/pciinit.c, pci_bios_init_bus_rec); functions of one slot without ACS share an IOMMU group, and so do all devices
behind a PCIe-to-PCI bridge (Linux drivers/iommu/iommu.c, pci_device_group). A host group of several functions is one
address space for QEMU only behind one requester id, which is what such a bridge gives it; emulated functions have no
such need and keep their PCI Express shape in one slot.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hawse.errors import DeviceError

MIB = 1024 * 1024
#: pcie.0 has the host bridge at 00.0, ICH9 at 1f, our own devices at 01 to 0e, the IOMMU none.
FIRST_PORT_SLOT = 0x0F
PORTS_PER_SLOT = 8
MAX_PORTS = (0x1F - FIRST_PORT_SLOT) * PORTS_PER_SLOT - 2
#: An I/O window has 4 KiB of the 64 KiB of x86, and firmware needs some itself (QEMU docs/pcie.txt: "about 10").
MAX_IO_PORTS = 10
#: Between the memory of a machine with 2 GiB below 4 GiB, or its PCI configuration space, and the I/O APIC
#: (QEMU hw/i386/pc_q35.c): what 32-bit windows of all ports can have, with room left for our own devices.
MAX_MEMORY = 768 * MIB
#: Every machine has them. More would cost each start: address spaces to build, buses to look at.
LEAST_PORTS = 4
#: Where the share is plugged.
SHARE_BUS = "port-share"
#: Where network interfaces are plugged, as functions of one slot: the machine is the same however many there are.
NETWORK_BUS = "port-net"
FUNCTIONS = 8
#: What SeaBIOS gives a hotplug port unasked, in bytes.
_MINIMUM_WINDOW = 2 * MIB
_IO_WINDOW = 4096
#: Ports that no VFIO group is given.
_OWN = (SHARE_BUS, NETWORK_BUS)


@dataclass(frozen=True)
class FunctionShape:
    """The BAR sizes of one function, in bytes: 32-bit or non-prefetchable, 64-bit prefetchable, and I/O in total."""

    memory: tuple[int, ...] = ()
    prefetchable: tuple[int, ...] = ()
    io: int = 0


@dataclass(frozen=True)
class GroupShape:
    """One group of functions that must be one group in the guest; ``bus``: the bus number that it would like there."""

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
    """A root port that takes a group: QEMU's id of it, its bus, its windows in bytes, and whether a bridge is in it."""

    name: str
    bus: int
    io: bool
    memory: int
    prefetchable: int
    bridge: bool = False

    @property
    def takes_at(self) -> str:
        """QEMU's id of what a function is plugged into."""
        return _bridge_of(self.name) if self.bridge else self.name


@dataclass(frozen=True)
class PortPlan:
    """``bridges``: QEMU devices to start with, as option mappings. ``slots``: in the order of plugging.

    ``ports`` are those that take devices, with one in it or not; ``network`` is the one for interfaces.
    """

    bridges: tuple[dict[str, Any], ...]
    slots: tuple[Slot, ...]
    ports: tuple[Port, ...]
    share_address: str
    network: Port


@dataclass
class _Port:
    """A root port to be: its group, if any, and the numbers of the bus behind it and of the bridge behind that.

    ``window``: the bytes of 64-bit prefetchable window where there is no group.
    """

    name: str
    group: GroupShape | None = None
    bus: int = 0
    io: bool = False
    window: int = 0
    spare_bridge: bool = False
    properties: dict[str, Any] = field(default_factory=dict)

    @property
    def buses(self) -> int:
        return 2 if self.spare_bridge or (self.group and _needs_bridge(self.group)) else 1

    @property
    def prefetchable(self) -> list[int]:
        """The sizes of the BARs that its 64-bit window is for."""
        return _prefetchable_bars(self.group) if self.group else [self.window]


def plan_ports(
    groups: Sequence[GroupShape],
    *,
    least: int = LEAST_PORTS,
    bridges: int = 0,
    spare_window: int = 0,
    disks: int = 0,
) -> PortPlan:
    """The share's port, one for each group, and the network's. Raises :class:`DeviceError` when there is no room.

    There are 4, 8, 16... ports, at least ``least``, some of them spare, and up to ``bridges`` of those with a bridge:
    most machines are then of one shape, which one template serves, and devices may come later. A group gets the bus
    that it would like; the others have the numbers that are left. ``spare_window``: the bytes of 64-bit prefetchable
    window, a power of two, that each spare port has at least. ``disks``: how many spare ports without a bridge there
    are to be for disks.
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
    # All, where there are windows for all; else the groups that need one, and as many spare ports as can have one.
    all_io = count + 1 <= MAX_IO_PORTS
    _check_room(groups, spare_io=all_io)
    # The bridges first: a group of several functions has no other place.
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
    devices: list[dict[str, Any]] = []
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
    """Where a group goes in a machine that runs already: into a spare port. Raises :class:`DeviceError` with reasons.

    A port that nothing was planned for has the least windows, and a bridge cannot come later: the guest's hotplug by
    ACPI knows those alone that firmware has seen (QEMU hw/acpi/pcihp.c).
    """
    bridged = _needs_bridge(group)
    spares = [spare for spare in spares if spare.bridge == bridged]
    if bridged and not spares:
        raise DeviceError(
            f"group {group.number} has {len(group.functions)} functions, which need a bridge, and a virtual machine "
            "that runs cannot get one",
            hint="name the group when the container is created",
        )
    memory, prefetchable, io = _memory(group), _prefetchable(group), _has_io(group)
    fitting = [s for s in spares if s.memory >= memory and s.prefetchable >= prefetchable and s.io >= io]
    if not fitting:
        windows = f"with windows of {memory // MIB} MiB and, prefetchable, {prefetchable // MIB} MiB"
        what = f" {windows}{' and of I/O' if io else ''}" if spares else ""
        raise DeviceError(
            f"group {group.number}: no spare port{what} is left in the virtual machine",
            hint="detach another group, or name this one when the container is created",
        )
    wished = [spare for spare in fitting if spare.bus == group.bus]
    # The least that fits: a large window is worth keeping.
    spare = wished[0] if wished else min(fitting, key=lambda spare: (spare.prefetchable, spare.memory, spare.bus))
    return _slots(_Port(spare.name, group, spare.bus))


def place_interfaces(count: int, ports: Sequence[Port]) -> tuple[tuple[int, Port, int], ...]:
    """Number, port and function of each interface that is plugged now, in the order of plugging: function 0 last.

    A slot takes no functions once its function 0 is there, so those that come later need another port. Raises
    :class:`DeviceError` when there are too few.
    """
    if count > len(ports) * FUNCTIONS:
        raise DeviceError(
            f"{count} network interfaces, and the virtual machine has ports for {len(ports) * FUNCTIONS}",
            hint="have fewer interfaces in the network namespace",
        )
    order = sorted(range(count), key=lambda number: (number // FUNCTIONS, -(number % FUNCTIONS)))
    return tuple((number, ports[number // FUNCTIONS], number % FUNCTIONS) for number in order)


def window(sizes: Iterable[int]) -> int:
    """The bytes that BARs of these sizes need in any order, a power of two: each is aligned to its own size."""
    total = sum(max(size, 4096) for size in sizes)
    return 1 << (total - 1).bit_length() if total else 0


def reservation(sizes: Sequence[int]) -> int:
    """The bytes to reserve for BARs of these sizes: their window, and as much as may be lost at its beginning.

    Firmware aligns an empty window to 2 MiB, not to what will be in it (SeaBIOS src/fw/pciinit.c,
    pci_bios_check_devices(), PCI_BRIDGE_MEM_MIN), and a BAR is aligned to its own size.
    """
    return window(sizes) + max(max(sizes, default=0) - _MINIMUM_WINDOW, 0)


def _check_room(groups: Sequence[GroupShape], *, spare_io: bool) -> None:
    """Raise :class:`DeviceError` where windows or slots are short, naming groups."""
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
            f"machine has {MAX_MEMORY // MIB} MiB: group {greatest} alone needs {memory[greatest] // MIB}",
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
    """Give each port its bus, sort by it, and reserve the numbers that are to stay unused.

    The buses are enough for MAX_PORTS: a port with a bridge takes two; one that would like a bus takes it and may leave
    the bus before it unused; those of the share and of the network take one each.
    """
    # Of two that would like the same, the first gets it.
    wished = {p.group.bus: p for p in reversed(ports) if p.group and p.group.bus and p.buses == 1}
    for bus, port in wished.items():
        port.bus = bus or 0
    bus = 1
    for port in ports:
        if port.bus:
            continue
        while any(bus + offset in wished for offset in range(port.buses)):
            bus += 1
        port.bus = bus
        bus += port.buses
    ports.sort(key=lambda port: port.bus)
    for port, following in itertools.pairwise(ports):
        unused = following.bus - port.bus - port.buses
        if unused:
            port.properties["bus-reserve"] = following.bus - port.bus - 1


def _root_port(index: int, port: _Port, *, last: bool) -> dict[str, Any]:
    slot, function = FIRST_PORT_SLOT + index // PORTS_PER_SLOT, index % PORTS_PER_SLOT
    made: dict[str, Any] = {
        "driver": "pcie-root-port",
        "id": port.name,
        "bus": "pcie.0",
        "addr": f"{slot:x}.{function}",
        "chassis": index + 1,
        "slot": index + 1,
        # With ACPI hotplug the port never shows an active link. After a reset of the bus behind a faster port Linux
        # waits for one and fails; behind one of 5 GT/s it waits a fixed time (Linux drivers/pci/pci.c,
        # pci_bridge_wait_for_secondary_bus()). QEMU moves data at the same speed whatever the port says.
        "x-speed": "5",
    }
    if function or not last:
        made["multifunction"] = True
    for name, sizes in (("mem-reserve", _memory_bars(port.group)), ("pref64-reserve", port.prefetchable)):
        if window(sizes) > _MINIMUM_WINDOW:
            made[name] = reservation(sizes)
    if port.buses > 1 and "mem-reserve" in made:
        made["mem-reserve"] += _MINIMUM_WINDOW  # for the BAR of the bridge's own hotplug controller
    # Said either way: firmware gives a PCI Express port no I/O window unasked (SeaBIOS src/fw/pciinit.c,
    # pci_bios_check_devices()), and the guest's kernel is told to give none itself: it gives them to the first ports.
    made["io-reserve"] = _IO_WINDOW if port.io else 0
    return made | port.properties


def _slots(port: _Port) -> tuple[Slot, ...]:
    group = port.group
    assert group is not None
    count = len(group.functions)
    if not _needs_bridge(group):
        # Function 0 comes last: it makes the guest look at the slot, and then it must find all of them.
        return tuple(
            Slot(group.number, number, port.name, f"0.{number}", count > 1, f"0000:{port.bus:02x}:00.{number}")
            for number in reversed(range(count))
        )
    # Slot 0 is taken by the bridge's own hotplug controller (QEMU hw/pci-bridge/pcie_pci_bridge.c).
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
