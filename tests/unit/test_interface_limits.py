"""Interfaces of a network namespace at the guest's limits, and missing attributes."""

from __future__ import annotations

from typing import Any

import pytest

from hawse.errors import ConfigError
from hawse.tap_helper.interfaces import Interface, read

Message = dict[str, Any]


def link(index: int = 2, *, kind: int = 1, **attrs: Any) -> Message:
    named = {"IFLA_IFNAME": f"eth{index}", "IFLA_MTU": 1500, "IFLA_ADDRESS": "0a:00:00:00:00:02"} | attrs
    listed = [pair for pair in named.items() if pair[1] is not None]
    return {"index": index, "ifi_type": kind, "flags": 0, "attrs": listed}


def address(*, family: int = 2, prefix: int = 24, flags: int = 0, **attrs: Any) -> Message:
    return {
        "index": 2, "family": family, "prefixlen": prefix, "scope": 3, "flags": flags, "attrs": list(attrs.items())
    }  # fmt: skip


def route(*, table: int = 254, family: int = 2, kind: int = 1, protocol: int = 3, **attrs: Any) -> Message:
    fields = {"family": family, "table": table, "type": kind, "proto": protocol, "scope": 0, "flags": 0, "dst_len": 16}
    return fields | {"attrs": list(({"RTA_OIF": 2, "RTA_DST": "10.9.0.0"} | attrs).items())}


def neighbour(number: int = 1, **attrs: Any) -> Message:
    named = {"NDA_DST": f"10.0.{number >> 8}.{number & 255}", "NDA_LLADDR": "02:00:00:00:00:01"} | attrs
    pairs = [pair for pair in named.items() if pair[1] is not None]
    return {"family": 2, "ifindex": 2, "state": 0x80 | 0x40, "attrs": pairs}


def seen(**messages: Any) -> tuple[list[Interface], list[str]]:
    dump: dict[str, Any] = {"links": [link()], "addresses": [], "routes": [], "neighbours": []} | messages
    return read([2], **dump)


@pytest.mark.parametrize(
    ("attrs", "taken"),
    [
        ({"IFLA_MTU": 67}, False),
        ({"IFLA_MTU": 68}, True),
        ({"IFLA_MTU": 65535}, True),
        ({"IFLA_MTU": 65536}, False),
        ({"IFLA_MTU": None}, False),
        ({"IFLA_ADDRESS": None}, False),
        ({"IFLA_ADDRESS": "fe:ff:ff:ff:ff:ff"}, True),
        ({"IFLA_ADDRESS": "ff:ff:ff:ff:ff:ff"}, False),
        ({"IFLA_ADDRESS": "0b:00:00:00:00:02"}, False),
        ({"IFLA_ADDRESS": "0a:00:00:00:00"}, False),
        ({"IFLA_ADDRESS": "0a:00:00:00:00:02:03"}, False),
        ({"kind": 772}, False),
    ],
)
def test_link_is_ethernet_with_a_usable_mtu(attrs: dict[str, Any], taken: bool) -> None:
    interfaces, warnings = seen(links=[link(**attrs)])
    assert (len(interfaces), len(warnings)) == ((1, 0) if taken else (0, 1))


def test_maximum_number_of_entries_is_accepted() -> None:
    counts = {
        "addresses": [address(IFA_ADDRESS=f"10.{n >> 8}.{n & 255}.1") for n in range(1025)],
        "routes": [route(RTA_DST=f"10.{n >> 8}.{n & 255}.0") for n in range(1025)],
        "neighbours": [neighbour(n) for n in range(1025)],
    }
    for kind, messages in counts.items():
        [interface], _ = seen(**{kind: messages[:1024]})
        assert len(getattr(interface, kind)) == 1024
        with pytest.raises(ConfigError, match=f"interface eth2 has 1025 {kind}, but a guest supports 1024"):
            seen(**{kind: messages})
    found_links, _ = read(range(1, 65), links=[link(n) for n in range(1, 65)], addresses=[], routes=[], neighbours=[])
    assert [each.index for each in found_links] == list(range(1, 65))


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (address(IFA_ADDRESS="10.0.0.2"), {"local": "10.0.0.2", "prefix": 24, "scope": 3}),
        (address(IFA_ADDRESS="10.0.0.2", IFA_BROADCAST=""), {"local": "10.0.0.2", "prefix": 24, "scope": 3}),
        (address(IFA_LOCAL="10.0.0.2"), {"local": "10.0.0.2", "prefix": 24, "scope": 3, "peer": ""}),
        # For IPv4 these bits have another meaning. Without the attribute, the flags of the header apply.
        (address(IFA_ADDRESS="10.0.0.2", flags=0x09), {"local": "10.0.0.2", "prefix": 24, "scope": 3}),
        (address(IFA_ADDRESS="fd77::2", family=10, flags=0x01), None),
        (address(IFA_ADDRESS="fd77::2", family=10, IFA_FLAGS=0, flags=0x01), {"local": "fd77::2"}),
        (address(IFA_ADDRESS="fd77::2", family=10, IFA_FLAGS=0x680), {"local": "fd77::2", "flags": 0x600}),
        (address(IFA_ADDRESS="fd77::2", family=10, IFA_FLAGS=0x400), {"local": "fd77::2", "flags": 0x400}),
        (address(IFA_ADDRESS="x", family=28), None),
    ],
)
def test_addresses(message: Message, expected: Message | None) -> None:
    [interface], warnings = seen(addresses=[message])
    assert interface.addresses == ([{"prefix": 24, "scope": 3} | expected] if expected else [])
    assert warnings == []


@pytest.mark.parametrize(
    ("message", "more"),
    [
        # The attribute is used if the number of the table is too large for the header.
        (route(table=252, RTA_TABLE=254), {}),
        (route(table=254, RTA_TABLE=1000), None),
        (route(), {}),
        (route(table=253), None),
        (route(kind=6), None),
        (route(protocol=2), None),
        (route(protocol=9), None),
        (route(protocol=10), {"protocol": 10}),
        (route(RTA_VIA=None), {}),
        (route(RTA_GATEWAY="10.0.0.1", RTA_VIA={"addr": "fe80::1"}), {"gateway": "10.0.0.1"}),
        (route(RTA_VIA={}), {}),
        (route(RTA_METRICS={"attrs": []}), {}),
        (route(RTA_METRICS={"attrs": [("RTAX_MTU", 1400), ("RTAX_LOCK", 3)]}), {"mtu": 1400}),
        (route(RTA_METRICS={"attrs": [("RTAX_MTU", 1400), ("RTAX_LOCK", 6)]}), {"mtu": 1400, "mtu_locked": True}),
        (route(RTA_OIF=3), None),
        (route(RTA_OIF=0), None),
    ],
)
def test_routes(message: Message, more: Message | None) -> None:
    [interface], warnings = seen(routes=[message])
    whole = {"family": 4, "to": "10.9.0.0", "prefix": 16, "scope": 0, "protocol": 3}
    assert interface.routes == ([] if more is None else [whole | more])
    assert warnings == []


def test_route_of_several_gateways_is_reported_for_each_interface() -> None:
    hops = [{"oif": 2}, {"oif": 3}, {"oif": 9}]
    interfaces, warnings = read(
        [2, 3], links=[link(2), link(3)], addresses=[], routes=[route(RTA_MULTIPATH=hops, RTA_OIF=0)], neighbours=[]
    )
    assert [each.routes for each in interfaces] == [[], []]
    assert sorted(warnings) == [
        f"interface eth{n}: the route 10.9.0.0/16 has several gateways: the guest does not get it" for n in (2, 3)
    ]


@pytest.mark.parametrize("missing", ["NDA_DST", "NDA_LLADDR"])
def test_neighbour_without_an_address_is_left_out(missing: str) -> None:
    nothing: dict[str, Any] = {missing: None}
    [interface], _ = seen(neighbours=[neighbour(**nothing), neighbour(5)])
    assert interface.neighbours == [{"to": "10.0.0.5", "mac": "02:00:00:00:00:01"}]


@pytest.mark.parametrize(
    ("priorities", "said"), [([], 0), ([None], 0), ([0, 32766, 32767], 0), ([0, 5], 1), ([5, 6], 1)]
)
def test_policy_routing_is_reported_once(priorities: list[int | None], said: int) -> None:
    rules = [{"attrs": [("FRA_PRIORITY", n)] if n is not None else []} for n in priorities]
    assert len(seen(rules=rules)[1]) == said
    assert seen(links=[], rules=rules) == ([], []), "no warning without an interface"
