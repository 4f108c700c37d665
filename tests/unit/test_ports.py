"""The port plan: addresses are computed, unique and repeatable; what has no room is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hawse.errors import DeviceError
from hawse.vm.ports import MIB, SHARE_BUS, FunctionShape, GroupShape, PortPlan, plan_ports, window

shapes = st.builds(
    FunctionShape,
    memory=st.lists(st.sampled_from([4096, 65536, MIB, 64 * MIB]), max_size=3).map(tuple),
    prefetchable=st.lists(st.sampled_from([MIB, 256 * MIB, 8192 * MIB]), max_size=2).map(tuple),
)
group_lists = st.lists(
    st.builds(
        GroupShape, number=st.integers(0, 10_000), functions=st.lists(shapes, min_size=1, max_size=8).map(tuple),
        emulated=st.booleans(),
    ),
    max_size=60, unique_by=lambda group: group.number,
)  # fmt: skip


def test_single_functions_get_the_buses_in_order() -> None:
    plan = plan_ports([GroupShape(5, (FunctionShape(),)), GroupShape(9, (FunctionShape(),))])
    assert [(slot.group, slot.bus, slot.addr, slot.guest_address) for slot in plan.slots] == [
        (5, "port0", "0.0", "0000:02:00.0"),
        (9, "port1", "0.0", "0000:03:00.0"),
    ]


def test_an_emulated_group_is_one_slot_whose_function_0_is_plugged_last() -> None:
    plan = plan_ports([GroupShape(6, (FunctionShape(), FunctionShape()), emulated=True)])
    assert [(slot.index, slot.addr, slot.guest_address) for slot in plan.slots] == [
        (1, "0.1", "0000:02:00.1"),
        (0, "0.0", "0000:02:00.0"),
    ]
    assert all(slot.multifunction for slot in plan.slots)


def test_a_host_group_of_two_is_behind_one_bridge_and_shifts_the_buses_after_it() -> None:
    plan = plan_ports([GroupShape(6, (FunctionShape(), FunctionShape())), GroupShape(7, (FunctionShape(),))])
    assert [(slot.group, slot.bus, slot.addr, slot.guest_address) for slot in plan.slots] == [
        (6, "bridge0", "1.0", "0000:03:01.0"),
        (6, "bridge0", "2.0", "0000:03:02.0"),
        (7, "port1", "0.0", "0000:04:00.0"),
    ]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (FunctionShape(), {}),
        (FunctionShape(io=32), {}),
        (FunctionShape(memory=(MIB,)), {}),
        (FunctionShape(memory=(16 * MIB, MIB)), {"mem-reserve": 32 * MIB}),
        (FunctionShape(prefetchable=(8192 * MIB,)), {"pref64-reserve": 8192 * MIB}),
    ],
)
def test_windows_follow_the_bars(function: FunctionShape, expected: dict[str, int]) -> None:
    assert _reserved(plan_ports([GroupShape(1, (function,))]), "port0") == expected


def test_io_windows_are_rationed_where_there_are_more_ports_than_windows() -> None:
    groups = [GroupShape(number, (FunctionShape(io=32 if number == 3 else 0),)) for number in range(12)]
    plan = plan_ports(groups)
    assert [_reserved(plan, f"port{number}") for number in (2, 3, 4)] == [{"io-reserve": 0}, {}, {"io-reserve": 0}]


@pytest.mark.parametrize(("groups", "ports"), [(0, 4), (1, 4), (4, 4), (5, 8), (9, 16), (100, 120)])
def test_machines_of_few_groups_are_of_one_shape(groups: int, ports: int) -> None:
    """One template serves them all, and devices may come later."""
    plan = plan_ports([GroupShape(number, (FunctionShape(),)) for number in range(groups)])
    assert len(plan.bridges) == 1 + ports
    assert plan.bridges[0]["id"] == SHARE_BUS
    if groups <= 4:
        assert plan.bridges == plan_ports([]).bridges


def _reserved(plan: PortPlan, port: str) -> dict[str, int]:
    [found] = [bridge for bridge in plan.bridges if bridge["id"] == port]
    return {key: value for key, value in found.items() if key.endswith("reserve")}


@given(group_lists)
def test_every_function_has_one_place_of_its_own(groups: list[GroupShape]) -> None:
    plan = plan_ports(groups)
    assert plan == plan_ports(groups)
    addresses = [slot.guest_address for slot in plan.slots]
    assert len(set(addresses)) == len(addresses) == sum(len(group.functions) for group in groups)
    ids = [bridge["id"] for bridge in plan.bridges]
    assert len(set(ids)) == len(ids)
    places = [(bridge["bus"], bridge["addr"]) for bridge in plan.bridges]
    assert len(set(places)) == len(places)


@given(st.lists(st.integers(1, 2**33), min_size=1, max_size=6))
def test_a_window_is_a_power_of_two_that_holds_all(sizes: list[int]) -> None:
    size = window(sizes)
    assert size >= sum(sizes)
    assert size & (size - 1) == 0


def test_more_io_windows_than_x86_has_are_refused_with_the_groups_named() -> None:
    groups = [GroupShape(number, (FunctionShape(io=32),)) for number in range(11)]
    with pytest.raises(DeviceError, match="I/O windows for 10"):
        plan_ports(groups)


def test_more_groups_than_ports_are_refused() -> None:
    with pytest.raises(DeviceError, match="121 VFIO groups"):
        plan_ports([GroupShape(number, (FunctionShape(),)) for number in range(121)])
