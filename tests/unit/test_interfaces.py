"""The guest's interfaces from pyroute2's messages: settings that are copied, those that are not, and warnings."""

from __future__ import annotations

from typing import Any

import pytest

from hawse.errors import ConfigError
from hawse.tap_helper.interfaces import Interface, addressed, read

MAC = "0a:00:00:00:00:02"


def link(index: int = 2, name: str = "eth0", mac: str = MAC, mtu: int = 1500, kind: int = 1) -> dict[str, Any]:
    attrs = [("IFLA_IFNAME", name), ("IFLA_MTU", mtu), ("IFLA_ADDRESS", mac)]
    return {"index": index, "ifi_type": kind, "flags": 0x11043, "attrs": attrs}


def address(local: str, *, index: int = 2, prefix: int = 24, flags: int = 0x80, **attrs: Any) -> dict[str, Any]:
    listed = {"IFA_ADDRESS": local, "IFA_FLAGS": flags} | attrs
    family = 10 if ":" in local else 2
    shown = {"index": index, "family": family, "prefixlen": prefix, "scope": 0, "flags": flags & 0xFF}
    return shown | {"attrs": list(listed.items())}


def route(to: str = "", prefix: int = 0, *, family: int = 2, index: int | None = 2, **other: Any) -> dict[str, Any]:
    attrs = {key: value for key, value in other.items() if key.startswith("RTA_")}
    attrs |= ({"RTA_DST": to} if to else {}) | ({"RTA_OIF": index} if index is not None else {})
    fields = {"table": 254, "proto": 3, "scope": 0, "type": 1, "flags": 0}
    fields |= {key: value for key, value in other.items() if not key.startswith("RTA_")}
    return {"family": family, "dst_len": prefix, "attrs": [("RTA_TABLE", fields["table"]), *attrs.items()]} | fields


def neighbour(to: str, *, index: int = 2, state: int = 0x80, family: int = 2) -> dict[str, Any]:
    attrs = [("NDA_DST", to), ("NDA_LLADDR", "02:00:00:00:00:01")]
    return {"family": family, "ifindex": index, "state": state, "flags": 0, "attrs": attrs}


def seen(**messages: list[dict[str, Any]]) -> tuple[Interface, list[str]]:
    """The only interface, and the warnings."""
    dump: dict[str, Any] = {"links": [link()], "addresses": [], "routes": [], "neighbours": []} | messages
    [interface], warnings = read([2], **dump)
    return interface, warnings


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            address("10.0.0.2", IFA_LOCAL="10.0.0.2", IFA_BROADCAST="10.0.0.255", IFA_LABEL="eth0"),
            {"local": "10.0.0.2", "prefix": 24, "scope": 0, "broadcast": "10.0.0.255", "label": "eth0"},
        ),
        (
            address("10.0.0.1", prefix=32, IFA_LOCAL="10.0.0.2"),
            {"local": "10.0.0.2", "prefix": 32, "scope": 0, "peer": "10.0.0.1"},
        ),
        (  # another address of the same network; for IPv6 this bit means a temporary address
            address("10.0.0.3", flags=0x81, IFA_RT_PRIORITY=9),
            {"local": "10.0.0.3", "prefix": 24, "scope": 0, "metric": 9},
        ),
        (address("fd77::2", prefix=64, flags=0x282), {"local": "fd77::2", "prefix": 64, "scope": 0, "flags": 0x200}),
        (address("fd77::3", prefix=64, flags=0x01), None),
        (address("10.0.0.2", index=3), None),
    ],
)
def test_addresses(message: dict[str, Any], expected: dict[str, Any] | None) -> None:
    interface, warnings = seen(addresses=[message])
    assert interface.addresses == ([expected] if expected else [])
    assert warnings == []


def test_duplicate_address_is_omitted_with_a_warning() -> None:
    interface, warnings = seen(addresses=[address("fd77::2", flags=0x88)])
    assert interface.addresses == []
    assert warnings == ["interface eth0: another host has its address fd77::2: the guest does not get it"]


@pytest.mark.parametrize(
    ("flags", "kept"),
    [(0x11043, 0x1000), (0x110C3, 0x1080), (0x11343, 0x1300), (0x10043, 0), (0x190E3, 0x90A0)],
)
def test_flags_that_a_user_sets(flags: int, kept: int) -> None:
    """As set by `ip link set eth0 arp off` and similar commands; not up, broadcast, running and lower-up
    (linux/if.h)."""
    interface, warnings = seen(links=[link() | {"flags": flags}])
    assert (interface.flags, warnings) == (kept, [])


@pytest.mark.parametrize(
    ("addresses", "routes", "expected"),
    [
        ([], [], set()),
        ([address("10.0.0.2")], [], {2}),
        ([address("fd77::2", prefix=64)], [], {2}),
        ([address("fe80::2", prefix=64) | {"scope": 253}], [], set()),
        ([address("169.254.1.2") | {"scope": 253}], [], {2}),
        ([], [route("10.9.0.0", 16, index=5)], {5}),
        ([], [route("fe80::", 64, family=10, proto=2)], set()),
        ([address("10.0.0.2") | {"family": 28}], [], set()),
    ],
)
def test_interfaces_with_addresses_or_routes(addresses: list[Any], routes: list[Any], expected: set[int]) -> None:
    assert addressed(addresses, routes) == expected


DEFAULT = {"family": 4, "to": "", "prefix": 0, "scope": 0, "protocol": 3}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (route(RTA_GATEWAY="10.0.0.1", RTA_PRIORITY=5), DEFAULT | {"gateway": "10.0.0.1", "metric": 5}),
        (route(RTA_GATEWAY="169.254.1.1", flags=4), DEFAULT | {"gateway": "169.254.1.1", "flags": 4}),
        (
            route("10.9.0.0", 16, scope=253, proto=4, RTA_PREFSRC="10.0.0.2"),
            {"family": 4, "to": "10.9.0.0", "prefix": 16, "scope": 253, "protocol": 4, "source": "10.0.0.2"},
        ),
        (route(RTA_VIA={"family": 10, "addr": "fe80::1"}), DEFAULT | {"gateway": "fe80::1"}),
        (
            route(RTA_METRICS={"attrs": [("RTAX_LOCK", 4), ("RTAX_MTU", 1400)]}),
            DEFAULT | {"mtu": 1400, "mtu_locked": True},
        ),
        (route(family=10, RTA_GATEWAY="fe80::1"), DEFAULT | {"family": 6, "gateway": "fe80::1"}),
        (route("10.0.0.0", 24, proto=2), None),  # the kernel adds it with its address
        (route(family=10, proto=9), None),  # the router announces it
        (route("10.0.0.2", 32, type=2, table=255), None),
        (route("10.9.0.0", 16, table=100), None),
        (route("10.9.0.0", 16, index=3), None),
        (route("10.9.0.0", 16, index=None, type=6), None),
        (route(family=10, flags=0x200), None),
        (route(family=7), None),
    ],
)
def test_routes(message: dict[str, Any], expected: dict[str, Any] | None) -> None:
    interface, warnings = seen(routes=[message])
    assert interface.routes == ([expected] if expected else [])
    assert warnings == []


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (
            route("10.9.0.0", 16, index=None, RTA_MULTIPATH=[{"oif": 2}, {"oif": 2}]),
            "interface eth0: the route 10.9.0.0/16 has several gateways: the guest does not get it",
        ),
        (route(RTA_ENCAP={}), "interface eth0: the route default has an encapsulation: the guest does not get it"),
    ],
)
def test_routes_that_are_omitted_with_a_warning(message: dict[str, Any], words: str) -> None:
    interface, warnings = seen(routes=[message])
    assert interface.routes == []
    assert warnings == [words]


@pytest.mark.parametrize(
    ("message", "taken"),
    [
        (neighbour("10.0.0.1"), True),
        (neighbour("fd77::1", family=10), True),
        (neighbour("10.0.0.1", state=0x02), False),
        (neighbour("10.0.0.1", index=3), False),
        (neighbour("x", family=7), False),
    ],
)
def test_permanent_neighbours_are_copied(message: dict[str, Any], taken: bool) -> None:
    interface, _ = seen(neighbours=[message])
    assert [entry["mac"] for entry in interface.neighbours] == ["02:00:00:00:00:01"] * taken


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (link(kind=65534, mac=""), "interface eth0 is not an Ethernet interface: the guest does not get it"),
        (link(mac="01:00:00:00:00:01"), "interface eth0 is not an Ethernet interface: the guest does not get it"),
        (link(mtu=65536), "interface eth0 has an MTU of 65536: the guest does not get it"),
    ],
)
def test_interfaces_that_a_vm_cannot_have(message: dict[str, Any], words: str) -> None:
    dump: dict[str, Any] = {"links": [message], "addresses": [address("10.0.0.2")], "routes": [], "neighbours": []}
    assert read([2], **dump) == ([], [words])


def test_interfaces_are_in_order_and_removed_ones_skipped() -> None:
    links = [link(7, "net1", "0a:00:00:00:00:07"), link(2)]
    interfaces, _ = read([7, 2, 9], links=links, addresses=[address("10.1.0.2", index=7)], routes=[], neighbours=[])
    assert [(each.index, each.name, len(each.addresses)) for each in interfaces] == [(2, "eth0", 0), (7, "net1", 1)]


@pytest.mark.parametrize(("priority", "said"), [(0, False), (32766, False), (32767, False), (100, True)])
def test_policy_routing_rules_are_a_warning(priority: int, said: bool) -> None:
    _, warnings = seen(rules=[{"attrs": [("FRA_PRIORITY", priority)]}])
    assert bool(warnings) == said


def test_more_than_a_guest_supports_is_refused() -> None:
    with pytest.raises(ConfigError, match="interface eth0 has 1025 routes, but a guest supports 1024"):
        seen(routes=[route(f"10.{n >> 8}.{n & 255}.0", 24) for n in range(1025)])
    links = [link(index, f"eth{index}") for index in range(1, 66)]
    with pytest.raises(ConfigError, match="has 65 interfaces, but a guest supports at most 64"):
        read(range(1, 66), links=links, addresses=[], routes=[], neighbours=[])
