"""The port plan: addresses are computed, unique and repeatable; groups that do not fit are refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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

SHAPES = [
    *(FunctionShape(memory, large) for memory in [(), (4096,), (65536, MIB)] for large in [(), (MIB, 8192 * MIB)]),
    FunctionShape((64 * MIB, 4096), (256 * MIB,)),
]


def draw_groups(draws: list[tuple[int, int, bool, int, int]]) -> list[GroupShape]:
    """At most as many groups as ports, in an order that differs from their numbers."""
    repeated = [draw for draw in draws for _ in range(draw[-1])][:MAX_PORTS]
    return [
        GroupShape((index * 37 + 5) % 10_007, (*(SHAPES[0],) * (count - 1), SHAPES[shape]), emulated, bus or None)
        for index, (count, shape, emulated, bus, _) in enumerate(repeated)
    ]


#: The number of functions, the BARs of each, whether they are emulated, the bus that the group prefers, and the
#: number of such groups.
group_lists = st.lists(
    st.tuples(
        st.integers(1, 8), st.integers(0, len(SHAPES) - 1), st.booleans(), st.integers(0, 255),
        st.sampled_from([1, 1, 1, 2, 10, 40]),
    ),
    max_size=12,
).map(draw_groups)  # fmt: skip


def test_single_functions_get_the_buses_in_order() -> None:
    plan = plan_ports([GroupShape(5, (FunctionShape(),)), GroupShape(9, (FunctionShape(),))])
    assert [(slot.group, slot.bus, slot.addr, slot.guest_address) for slot in plan.slots] == [
        (5, "port0", "0.0", "0000:02:00.0"),
        (9, "port1", "0.0", "0000:03:00.0"),
    ]


def test_emulated_group_is_one_slot_with_function_0_plugged_last() -> None:
    plan = plan_ports([GroupShape(6, (FunctionShape(), FunctionShape()), emulated=True)])
    assert [(slot.index, slot.addr, slot.guest_address) for slot in plan.slots] == [
        (1, "0.1", "0000:02:00.1"),
        (0, "0.0", "0000:02:00.0"),
    ]
    assert all(slot.multifunction for slot in plan.slots)


def test_host_group_of_two_functions_is_behind_a_bridge_and_shifts_later_buses() -> None:
    plan = plan_ports([GroupShape(6, (FunctionShape(), FunctionShape())), GroupShape(7, (FunctionShape(),))])
    assert [(slot.group, slot.bus, slot.addr, slot.guest_address) for slot in plan.slots] == [
        (6, "bridge0", "1.0", "0000:03:01.0"),
        (6, "bridge0", "2.0", "0000:03:02.0"),
        (7, "port1", "0.0", "0000:04:00.0"),
    ]


def test_port_with_a_bridge_reserves_memory_for_the_bridges_bar() -> None:
    functions = (FunctionShape(memory=(16 * MIB,), prefetchable=(256 * MIB, 32 * MIB)), FunctionShape())
    [port] = [device for device in plan_ports([GroupShape(6, functions)]).bridges if device["id"] == "port0"]
    assert (port["mem-reserve"], port["pref64-reserve"]) == ((16 + 14 + 2) * MIB, (512 + 254) * MIB)


def test_slots_behind_a_bridge_are_written_in_hexadecimal() -> None:
    plan = plan_ports([GroupShape(6, (FunctionShape(),) * 12)])
    assert [(slot.addr, slot.guest_address) for slot in plan.slots][9:11] == [
        ("a.0", "0000:03:0a.0"),
        ("b.0", "0000:03:0b.0"),
    ]


def one(number: int, bus: int | None = None, functions: int = 1) -> GroupShape:
    return GroupShape(number, (FunctionShape(),) * functions, bus=bus)


@pytest.mark.parametrize(
    ("groups", "buses", "share"),
    [
        ([one(1, 0x3B)], {1: 0x3B}, 1),
        ([one(1, 1)], {1: 1}, 2),
        ([one(1, 3), one(2, 2), one(3)], {1: 3, 2: 2, 3: 4}, 1),
        ([one(1, 2), one(2, functions=2)], {1: 2, 2: 4}, 1),
        ([one(1, 0xFF)], {1: 0xFF}, 1),
        ([one(1, 0x3B), one(2, 0x3B)], {1: 0x3B, 2: 2}, 1),
    ],
)
def test_group_gets_its_preferred_bus_and_others_avoid_it(
    groups: list[GroupShape], buses: dict[int, int], share: int
) -> None:
    plan = plan_ports(groups)
    assert {slot.group: int(slot.guest_address[5:7], 16) for slot in plan.slots} == buses
    assert plan.share_address == f"0000:{share:02x}:00.0"


@settings(max_examples=50)
@given(group_lists)
def test_firmware_numbers_the_buses_as_planned(groups: list[GroupShape]) -> None:
    """SeaBIOS numbers buses depth first, and skips at least as many numbers after a port as the port reserves."""
    try:
        plan = plan_ports(groups)
    except DeviceError:
        return
    numbers: dict[str, int] = {}
    newest = 0
    for bridge in plan.bridges:
        if bridge["driver"] == "pcie-root-port":
            newest += 1
            secondary = numbers[bridge["id"]] = newest
            behind = [other for other in plan.bridges if other["bus"] == bridge["id"]]
            for other in behind:
                newest += 1
                numbers[other["id"]] = newest
            newest = max(newest, secondary + bridge.get("bus-reserve", 0))
    assert newest <= 0xFF
    assert {slot.guest_address[5:7] for slot in plan.slots} <= {f"{bus:02x}" for bus in numbers.values()}
    for slot in plan.slots:
        assert slot.guest_address[5:7] == f"{numbers[slot.bus]:02x}"
    assert plan.share_address == f"0000:{numbers[SHARE_BUS]:02x}:00.0"
    assert {port.name: port.bus for port in plan.ports}.items() <= numbers.items()


def port(bus: int, *, io: bool = True, memory: int = 2 * MIB, prefetchable: int = 2 * MIB) -> Port:
    return Port(f"port{bus}", bus, io, memory, prefetchable)


SPARES = [port(4), port(5)]
LARGE = GroupShape(9, (FunctionShape(prefetchable=(8 * MIB,)),))


@pytest.mark.parametrize(
    ("group", "spares", "address"),
    [
        (one(9), SPARES, "0000:04:00.0"),
        (one(9, 5), SPARES, "0000:05:00.0"),
        (one(9, 7), SPARES, "0000:04:00.0"),
        (GroupShape(9, (FunctionShape(io=32),)), [port(3, io=False), *SPARES], "0000:04:00.0"),
        (one(9), [port(3, prefetchable=8192 * MIB), *SPARES], "0000:04:00.0"),
        (LARGE, [*SPARES, port(6, prefetchable=8192 * MIB)], "0000:06:00.0"),
    ],
)
def test_attached_group_goes_into_a_spare_port(group: GroupShape, spares: list[Port], address: str) -> None:
    [slot] = place(group, spares)
    assert slot.guest_address == address


@pytest.mark.parametrize(
    ("group", "spares", "reason"),
    [
        (one(9), [], "group 9: no spare port is left"),
        (
            GroupShape(9, (FunctionShape(io=32),)),
            [port(4, io=False)],
            "0 MiB prefetchable window, and with an I/O window, is",
        ),
        (one(9, functions=2), SPARES, "group 9 has 2 functions, which need a bridge"),
        (LARGE, SPARES, "no spare port with a 0 MiB window and a 8 MiB prefetchable window is left"),
        (GroupShape(9, (FunctionShape(memory=(4 * MIB,)),)), SPARES, "no spare port with a 4 MiB window"),
    ],
)
def test_attached_group_that_fits_no_spare_port_is_refused(group: GroupShape, spares: list[Port], reason: str) -> None:
    with pytest.raises(DeviceError, match=reason):
        place(group, spares)


def test_too_large_32_bit_bars_are_refused() -> None:
    groups = [GroupShape(number, (FunctionShape(memory=(128 * MIB,)),)) for number in range(3)]
    plan_ports(groups)
    with pytest.raises(DeviceError, match="windows of 1016 MiB, and a virtual machine has 768 MiB: group"):
        plan_ports([*groups, GroupShape(9, (FunctionShape(memory=(128 * MIB,)),))])


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (FunctionShape(), {}),
        (FunctionShape(io=32), {}),
        (FunctionShape(memory=(MIB,)), {}),
        (FunctionShape(memory=(16 * MIB, MIB)), {"mem-reserve": (32 + 14) * MIB}),
        (FunctionShape(prefetchable=(8192 * MIB,)), {"pref64-reserve": (2 * 8192 - 2) * MIB}),
    ],
)
def test_window_sizes_follow_the_bars(function: FunctionShape, expected: dict[str, int]) -> None:
    assert _reserved(plan_ports([GroupShape(1, (function,))]), "port0") == expected | {"io-reserve": 4096}


@given(st.lists(st.integers(12, 40).map(lambda bits: 1 << bits), min_size=1, max_size=6), st.integers(0, 2**20))
def test_bars_fit_into_their_reservation_wherever_firmware_puts_it(sizes: list[int], start: int) -> None:
    base = start * 2 * MIB
    place = base
    for size in sorted(sizes, reverse=True):
        place = -(-place // size) * size + size
    assert place <= base + max(reservation(sizes), 2 * MIB)


def test_io_windows_are_rationed_where_there_are_more_ports_than_windows() -> None:
    groups = [GroupShape(number, (FunctionShape(io=32 if number == 3 else 0),)) for number in range(12)]
    plan = plan_ports(groups)
    assert [_reserved(plan, f"port{number}") for number in (2, 3, 4)] == [
        {"io-reserve": 0}, {"io-reserve": 4096}, {"io-reserve": 0},
    ]  # fmt: skip


@pytest.mark.parametrize(("groups", "ports"), [(0, 4), (1, 4), (4, 4), (5, 8), (9, 16), (100, 126)])
def test_vms_with_few_groups_have_the_same_ports(groups: int, ports: int) -> None:
    """So one template serves them all, and devices can be attached later."""
    plan = plan_ports([GroupShape(number, (FunctionShape(),)) for number in range(groups)])
    assert len(plan.bridges) == 2 + ports
    assert plan.bridges[0]["id"] == SHARE_BUS
    if groups <= 4:
        assert plan.bridges == plan_ports([]).bridges


def _reserved(plan: PortPlan, port: str) -> dict[str, int]:
    [bridge_device] = [bridge for bridge in plan.bridges if bridge["id"] == port]
    return {key: value for key, value in bridge_device.items() if key.endswith("reserve")}


@settings(max_examples=50)
@given(group_lists)
def test_every_function_has_a_unique_slot_and_address(groups: list[GroupShape]) -> None:
    try:
        plan = plan_ports(groups)
    except DeviceError as error:
        assert "32-bit BARs" in error.message
        return
    assert plan == plan_ports(groups)
    addresses = [slot.guest_address for slot in plan.slots]
    assert len(set(addresses)) == len(addresses) == sum(len(group.functions) for group in groups)
    ids = [bridge["id"] for bridge in plan.bridges]
    assert len(set(ids)) == len(ids)
    places = [(bridge["bus"], bridge["addr"]) for bridge in plan.bridges]
    assert len(set(places)) == len(places)


@given(st.lists(st.integers(1, 2**33), min_size=1, max_size=6))
def test_window_is_a_power_of_two_that_contains_all_bars(sizes: list[int]) -> None:
    size = window(sizes)
    assert size >= sum(sizes)
    assert size & (size - 1) == 0


def test_spare_ports_of_a_pod_have_windows_for_devices_of_its_containers() -> None:
    """Ports with a bridge come first, since a group of several functions needs a bridge."""
    ports = plan_ports([], least=16, bridges=2, spare_window=256 * MIB).ports
    assert sum(port.io for port in ports) == 10
    assert [port.io for port in ports if port.bridge] == [True, True]
    assert {port.prefetchable for port in ports} == {256 * MIB}
    nics = GroupShape(7, tuple(FunctionShape(memory=(128 * 1024,), prefetchable=(64 * MIB,), io=32) for _ in range(2)))
    assert {slot.bus for slot in place(nics, ports)} < {port.takes_at for port in ports if port.bridge}


def test_too_many_io_windows_are_refused_with_the_groups_named() -> None:
    groups = [GroupShape(number, (FunctionShape(io=32),)) for number in range(11)]
    with pytest.raises(DeviceError, match="I/O windows for 10"):
        plan_ports(groups)


def test_more_groups_than_ports_are_refused() -> None:
    with pytest.raises(DeviceError, match="127 VFIO groups"):
        plan_ports([GroupShape(number, (FunctionShape(),)) for number in range(127)])


def test_interfaces_share_one_slot_and_function_0_is_plugged_last() -> None:
    plan = plan_ports([])
    assert plan.network not in plan.ports
    places = place_interfaces(3, [plan.network])
    assert [(number, port.name, function) for number, port, function in places] == [
        (2, NETWORK_BUS, 2), (1, NETWORK_BUS, 1), (0, NETWORK_BUS, 0),
    ]  # fmt: skip


def test_more_than_eight_interfaces_take_more_ports() -> None:
    plan = plan_ports([])
    places = place_interfaces(10, [plan.network, plan.ports[0]])
    assert [(number, function) for number, port, function in places if port == plan.ports[0]] == [(9, 1), (8, 0)]
    assert sorted(number for number, _, _ in places) == list(range(10))
    with pytest.raises(DeviceError, match="9 network interfaces, and the virtual machine has ports for 8"):
        place_interfaces(9, [plan.network])
    assert place_interfaces(0, []) == ()


@settings(max_examples=50)
@given(group_lists)
def test_network_port_is_never_used_for_a_group(groups: list[GroupShape]) -> None:
    try:
        plan = plan_ports(groups)
    except DeviceError:
        return
    assert plan.network.name not in {slot.bus for slot in plan.slots} | {port.name for port in plan.ports}
    address = f"0000:{plan.network.bus:02x}:00.0"
    assert address not in {slot.guest_address for slot in plan.slots} | {plan.share_address}
