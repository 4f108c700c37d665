"""The limits of the port plan: a request that fits exactly is planned; one more group or byte is refused."""

from __future__ import annotations

from typing import Any

import pytest

from hawse.errors import DeviceError
from hawse.vm.ports import (
    MAX_PORTS,
    MIB,
    NETWORK_BUS,
    SHARE_BUS,
    FunctionShape,
    GroupShape,
    Port,
    PortPlan,
    place,
    place_interfaces,
    plan_ports,
    reservation,
    window,
)

PLAIN, IO = FunctionShape(), FunctionShape(io=32)


def groups(count: int, function: FunctionShape = PLAIN, *, first: int = 0, functions: int = 1) -> list[GroupShape]:
    return [GroupShape(first + number, (function,) * functions) for number in range(count)]


def root_ports(plan: PortPlan) -> list[dict[str, Any]]:
    return [bridge for bridge in plan.bridges if bridge["driver"] == "pcie-root-port"]


def io_ports(plan: PortPlan) -> list[str]:
    return [bridge["id"] for bridge in root_ports(plan) if bridge["io-reserve"]]


def test_largest_vm_fills_the_slots_of_the_root_bus() -> None:
    """Slot 1f belongs to ICH9, and slots below 0f to hawse's own devices (QEMU hw/i386/pc_q35.c)."""
    plan = plan_ports(groups(126))
    ports = root_ports(plan)
    assert (len(ports), MAX_PORTS) == (128, 126)
    assert [port["addr"] for port in ports] == [f"{slot:x}.{number}" for slot in range(15, 31) for number in range(8)]
    assert [(port["chassis"], port["slot"]) for port in ports] == [(number, number) for number in range(1, 129)]
    assert all(port["multifunction"] for port in ports)
    with pytest.raises(DeviceError, match="127 VFIO groups, and a virtual machine has 126 ports for them"):
        plan_ports(groups(127))


def test_bus_numbers_suffice_if_every_port_takes_two() -> None:
    """Half of the groups have bridges, and each other group requests a bus that leaves the bus before it unused."""
    wishes = [GroupShape(number, (PLAIN,), bus=3 * number) for number in range(1, 64)]
    plan = plan_ports([*wishes, *groups(63, functions=2, first=1000)])
    buses = [int(slot.guest_address[5:7], 16) for slot in plan.slots]
    assert len(plan.slots) == 63 + 2 * 63
    assert max([*buses, plan.network.bus]) <= 0xFF


@pytest.mark.parametrize(("least", "is_alone"), [(4, False), (6, False), (7, True), (8, False), (15, True)])
def test_single_port_in_a_slot_is_not_multifunction(least: int, is_alone: bool) -> None:
    """Linux looks for functions 1 to 7 only where function 0 is marked (PCI Local Bus 3.0, section 6.2.1)."""
    ports = root_ports(plan_ports([], least=least))
    assert len(ports) == least + 2
    assert all(port.get("multifunction") for port in ports[:-1])
    assert ("multifunction" not in ports[-1]) is is_alone


@pytest.mark.parametrize(("least", "count"), [(4, 4), (8, 8), (9, 9), (10, 10), (11, 10), (12, 10), (16, 10)])
def test_at_most_ten_ports_have_io_windows(least: int, count: int) -> None:
    assert len(io_ports(plan_ports([], least=least))) == count


@pytest.mark.parametrize(("least", "count"), [(8, 8), (9, 9), (10, 7)])
def test_io_windows_go_to_all_ports_or_only_to_spare_ports(least: int, count: int) -> None:
    """With enough windows, three groups without I/O BARs and the share's port get one too."""
    assert len(io_ports(plan_ports(groups(3), least=least))) == count


@pytest.mark.parametrize(("with_io", "without"), [(0, 12), (3, 9), (8, 0), (9, 3), (10, 5), (10, 0)])
def test_io_windows_go_to_the_groups_that_need_them_first(with_io: int, without: int) -> None:
    plan = plan_ports([*groups(without), *groups(with_io, IO, first=100)], least=16, bridges=2)
    needed = [f"port{number}" for number in range(without, without + with_io)]
    spares = [f"port{number}" for number in range(without + with_io, 16)]
    bridged = [name for name in spares if name in ("port14", "port15")]
    with_windows = [*needed, *[*bridged, *(name for name in spares if name not in bridged)][: 10 - with_io]]
    assert set(io_ports(plan)) == set(with_windows)
    assert [port.name for port in plan.ports if port.io] == io_ports(plan)
    assert [port.name for port in plan.ports if port.bridge] == bridged


@pytest.mark.parametrize("least", [4, 16])
def test_more_groups_with_io_than_windows_are_refused(least: int) -> None:
    assert len(io_ports(plan_ports(groups(10, IO), least=least))) == 10
    with pytest.raises(DeviceError, match=r"11 VFIO groups have I/O BARs, and .* I/O windows for 10") as caught:
        plan_ports(groups(11, IO), least=least)
    assert caught.value.hint == "pass fewer of the groups 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10"


@pytest.mark.parametrize(("emulated", "most", "place_"), [(False, 31, "a bridge"), (True, 8, "a slot")])
def test_functions_of_a_group_are_limited_by_its_slot_or_bridge(emulated: bool, most: int, place_: str) -> None:
    def plan(count: int) -> PortPlan:
        return plan_ports([GroupShape(5, (PLAIN,) * count, emulated=emulated)])

    assert len({slot.guest_address for slot in plan(most).slots}) == most
    words = f"group 5 has {most + 1} functions, and {place_} of the guest has {most}"
    with pytest.raises(DeviceError, match=words):
        plan(most + 1)


def test_32_bit_windows_are_limited_to_768_mib() -> None:
    large = GroupShape(1, (FunctionShape(memory=(256 * MIB, 256 * MIB)),))  # 512 MiB, and 254 MiB for alignment
    exactly = GroupShape(2, (FunctionShape(memory=(2 * MIB,)),))
    assert root_ports(plan_ports([large, exactly]))[1]["mem-reserve"] == (512 + 254) * MIB
    more = GroupShape(3, (FunctionShape(memory=(1,)),))
    with pytest.raises(
        DeviceError, match=r"need windows of 768 MiB, and a .* has 768 MiB: group 1 needs the most, 766 MiB"
    ):
        plan_ports([large, exactly, more])


@pytest.mark.parametrize(
    ("sizes", "bytes_", "reserved"),
    [
        ([], 0, 0),
        ([1], 4096, 4096),
        ([4096], 4096, 4096),
        ([4096, 1], 8192, 8192),
        ([8192, 4096], 16384, 16384),
        ([MIB, MIB], 2 * MIB, 2 * MIB),
        ([2 * MIB], 2 * MIB, 2 * MIB),
        ([2 * MIB, 1], 4 * MIB, 4 * MIB),
        ([4 * MIB], 4 * MIB, 6 * MIB),
        ([1, 4 * MIB], 8 * MIB, 10 * MIB),
    ],
)
def test_windows_are_powers_of_two_and_reservations_hold_them_anywhere(
    sizes: list[int], bytes_: int, reserved: int
) -> None:
    assert (window(sizes), reservation(sizes)) == (bytes_, reserved)


@pytest.mark.parametrize(
    ("functions", "expected"),
    [
        ([FunctionShape(memory=(MIB, MIB), prefetchable=(2 * MIB,))], {}),
        ([FunctionShape(memory=(2 * MIB, 1))], {"mem-reserve": 4 * MIB}),
        ([FunctionShape(prefetchable=(2 * MIB, 1))], {"pref64-reserve": 4 * MIB}),
        ([FunctionShape(memory=(MIB,))] * 2, {}),
        ([FunctionShape(memory=(2 * MIB,))] * 2, {"mem-reserve": (4 + 2) * MIB}),
    ],
)
def test_firmwares_default_window_is_not_reserved(functions: list[FunctionShape], expected: dict[str, int]) -> None:
    port = root_ports(plan_ports([GroupShape(1, tuple(functions))]))[1]
    assert port["id"] == "port0"
    assert {key: value for key, value in port.items() if key in ("mem-reserve", "pref64-reserve")} == expected


def test_ports_contain_their_window_sizes() -> None:
    large = FunctionShape(memory=(16 * MIB,), prefetchable=(64 * MIB,))
    plan = plan_ports([GroupShape(1, (large,)), GroupShape(2, (PLAIN, PLAIN))], spare_window=8 * MIB)
    assert plan.ports == (
        Port("port0", 2, True, 16 * MIB, 64 * MIB),
        Port("port1", 3, True, 2 * MIB, 2 * MIB, bridge=True),
        Port("port2", 5, True, 2 * MIB, 8 * MIB),
        Port("port3", 6, True, 2 * MIB, 8 * MIB),
    )
    assert [port.takes_at for port in plan.ports] == ["port0", "bridge1", "port2", "port3"]
    assert plan.network == Port(NETWORK_BUS, 7, False, 2 * MIB, 2 * MIB)
    assert [(b["id"], b["bus"], b["addr"]) for b in plan.bridges if b["driver"] == "pcie-pci-bridge"] == [
        ("bridge1", "port1", "0.0")
    ]
    assert plan.bridges[0]["id"] == SHARE_BUS


@pytest.mark.parametrize(
    ("wishes", "functions", "expected"),
    [
        ([3], 1, {}),
        ([4], 1, {"port-net": 1}),
        ([5], 1, {"port-net": 2}),
        ([4, 5], 1, {"port-net": 1}),
        ([7, 0x20], 1, {"port-net": 4, "port0": 0x18}),
        ([4, None], 2, {}),  # bus 1 is the share's, 2 and 3 the bridge's, 5 the network's
        ([9, None], 2, {"port-net": 4}),
        ([3, None], 2, {"port-share": 1}),  # the bridge needs two buses, which do not fit between 1 and 3
    ],
)
def test_unused_bus_numbers_are_reserved_by_the_port_before_them(
    wishes: list[int | None], functions: int, expected: dict[str, int]
) -> None:
    asked = [GroupShape(number, (PLAIN,) * (1 if bus else functions), bus=bus) for number, bus in enumerate(wishes)]
    plan = plan_ports(asked, least=len(wishes))
    assert {p["id"]: p["bus-reserve"] for p in root_ports(plan) if "bus-reserve" in p} == expected


@pytest.mark.parametrize(
    ("spare", "fits"),
    [
        (Port("port4", 4, True, 4 * MIB, 8 * MIB), True),
        (Port("port4", 4, True, 4 * MIB - 1, 8 * MIB), False),
        (Port("port4", 4, True, 4 * MIB, 8 * MIB - 1), False),
        (Port("port4", 4, False, 4 * MIB, 8 * MIB), False),
        (Port("port4", 4, True, 4 * MIB, 8 * MIB, bridge=True), False),
    ],
)
def test_group_that_fits_the_windows_goes_into_a_spare_port(spare: Port, fits: bool) -> None:
    group = GroupShape(9, (FunctionShape(memory=(4 * MIB,), prefetchable=(8 * MIB,), io=32),))
    if fits:
        assert [slot.guest_address for slot in place(group, [spare])] == ["0000:04:00.0"]
        return
    with pytest.raises(DeviceError, match=r"group 9: no spare port.* is left in the virtual machine"):
        place(group, [spare])


def test_group_without_io_goes_into_a_spare_port_without_io() -> None:
    [slot] = place(GroupShape(9, (PLAIN,)), [Port("port4", 4, False, 0, 0)])
    assert (slot.bus, slot.multifunction) == ("port4", False)


def test_group_of_several_functions_goes_into_a_spare_bridge() -> None:
    spares = [Port("port4", 4, True, 2 * MIB, 2 * MIB), Port("port5", 5, True, 2 * MIB, 2 * MIB, bridge=True)]
    slots = place(GroupShape(9, (PLAIN, PLAIN)), spares)
    assert [(slot.bus, slot.addr, slot.guest_address) for slot in slots] == [
        ("bridge5", "1.0", "0000:06:01.0"),
        ("bridge5", "2.0", "0000:06:02.0"),
    ]
    with pytest.raises(DeviceError, match="group 9 has 2 functions, which need a bridge"):
        place(GroupShape(9, (PLAIN, PLAIN)), spares[:1])


def test_interfaces_fill_slots_from_the_last_function_down() -> None:
    plan = plan_ports([])
    ports = [plan.network, plan.ports[0]]
    assert [(number, port, function) for number, port, function in place_interfaces(10, ports)] == [
        *((number, plan.network, number) for number in reversed(range(8))),
        (9, plan.ports[0], 1), (8, plan.ports[0], 0),
    ]  # fmt: skip
    assert len(place_interfaces(16, ports)) == 16
    with pytest.raises(DeviceError, match="17 network interfaces, and the virtual machine has ports for 16"):
        place_interfaces(17, ports)
