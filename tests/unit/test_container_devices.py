"""What a plan says of each function: where the guest has it, and why not where the host has it."""

from __future__ import annotations

import pytest

from hawse.container.devices import mirrored_bus, plug_steps, shape
from hawse.container.options import DeviceOptions
from hawse.sandbox.mirror import mirror
from hawse.sandbox.plan import NodeRequest, PlugStep, addresses
from hawse.vfio.emulated import EmulatedGroup
from hawse.vfio.groups import Bar, Function, HostGroup
from hawse.vm.ports import plan_ports


def group(number: int, *names: str, bars: tuple[Bar, ...] = ()) -> HostGroup:
    return HostGroup(number, tuple(Function(name, 0x8086, 0x10D3, 0x020000, "vfio-pci", bars) for name in names))


def steps(*groups: HostGroup | EmulatedGroup, keep: bool = True) -> list[PlugStep]:
    ports = plan_ports([shape(one, keep_address=keep) for one in groups])
    return plug_steps(groups, ports.slots, owner="c1", options=DeviceOptions(keep_addresses=keep))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["0000:3b:00.0"], 0x3B),
        (["0000:01:00.0"], 1),
        (["0000:ff:00.0"], 0xFF),
        (["0000:3b:00.1"], "it is 00.1 on its bus"),
        (["0000:3b:02.0"], "it is 02.0 on its bus"),
        (["0000:00:1f.6"], "it is on bus 00"),
        (["10000:01:00.0"], "its domain is 10000"),
        (["0000:3b:00.0", "0000:3b:00.1"], "group 7 has 2 functions, which are behind one bridge"),
    ],
)
def test_an_address_is_kept_where_a_root_port_can_give_it(names: list[str], expected: int | str) -> None:
    found = mirrored_bus(group(7, *names))
    assert found == expected if isinstance(expected, int) else str(found).startswith(expected)


def test_the_plan_tells_why_an_address_is_another() -> None:
    made = steps(group(1, "0000:3b:00.0"), group(2, "0000:3c:00.1"), EmulatedGroup(5, ("edu",)))
    assert [(step.guest_address, step.note) for step in made] == [
        ("0000:3b:00.0", ""),
        ("0000:02:00.0", "it is 00.1 on its bus, and a port of the guest has 00.0 alone"),
        ("0000:03:00.0", ""),
    ]
    assert addresses(made) == {"0000:3b:00.0": "0000:3b:00.0", "0000:3c:00.1": "0000:02:00.0"}


def test_addresses_can_be_left_to_themselves() -> None:
    """Then all machines of few devices are of one shape, and one template serves them."""
    [step] = steps(group(1, "0000:3b:00.0"), keep=False)
    assert (step.guest_address, step.note) == ("0000:02:00.0", "devices.keep_addresses is off")


def test_windows_are_from_the_bars() -> None:
    bars = (Bar(0, 2**33, False, True, True), Bar(2, 4096, False, False, False), Bar(4, 32, True, False, False))
    [function] = shape(group(1, "0000:3b:00.0", bars=bars)).functions
    assert (function.prefetchable, function.memory, function.io) == ((2**33,), (4096,), 32)


def test_the_map_has_both_sides_of_each_function_and_its_nodes() -> None:
    made = steps(group(12, "0000:3b:00.0"), group(3, "0000:3c:00.1"))
    nodes = [
        NodeRequest(path="/dev/vfio/vfio", major=10, minor=196, group=None),
        NodeRequest(path="/dev/vfio/12", major=240, minor=0, group=12),
        NodeRequest(path="/dev/vfio/3", major=240, minor=1, group=3),
    ]
    assert mirror(made, nodes, {12: (3, 511, 0), 3: (4, 511, 1)}) == [
        {
            "device": "0000:3b:00.0",
            "host": {"address": "0000:3b:00.0", "group": 12},
            "guest": {"address": "0000:3b:00.0", "group": 3},
            "nodes": ["/dev/vfio/3", "/dev/vfio/12"],
        },
        {
            "device": "0000:3c:00.1",
            "host": {"address": "0000:3c:00.1", "group": 3},
            "guest": {"address": "0000:02:00.0", "group": 4},
            "nodes": ["/dev/vfio/4"],
            "note": "it is 00.1 on its bus, and a port of the guest has 00.0 alone",
        },
    ], "the path /dev/vfio/3 is the other group's"
