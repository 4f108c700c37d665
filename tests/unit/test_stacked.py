"""Stacked interfaces of a network namespace, by kind: which of them the guest gets."""

from __future__ import annotations

from typing import Any

import pytest

from hawse.tap_helper.stacked import choose


def link(index: int, name: str, kind: str = "", *, data: Any = None, **attrs: Any) -> dict[str, Any]:
    info: list[tuple[str, Any]] = [("IFLA_INFO_KIND", kind)] if kind else []
    if data is not None:
        info.append(("IFLA_INFO_DATA", {"attrs": list(data.items())} if isinstance(data, dict) else data))
    listed = {"IFLA_IFNAME": name, "IFLA_LINKINFO": {"attrs": info}} | {f"IFLA_{key}": v for key, v in attrs.items()}
    return {"index": index, "attrs": list(listed.items())}


ETH0, ETH1 = link(2, "eth0", "veth", LINK=9, LINK_NETNSID=0), link(3, "eth1", "veth", LINK=10, LINK_NETNSID=0)
VLAN = {"IFLA_VLAN_ID": 5, "IFLA_VLAN_PROTOCOL": 0x8100}
QINQ = {"IFLA_VLAN_ID": 5, "IFLA_VLAN_PROTOCOL": 0x88A8}


def enslaved(index: int, name: str, master: int = 4) -> dict[str, Any]:
    return link(index, name, "veth", LINK=9, LINK_NETNSID=0, MASTER=master)


@pytest.mark.parametrize("kind", ["bond", "bridge", "team", "openvswitch", "batadv", "some-later-kind"])
def test_members_of_a_master_are_not_joined(kind: str) -> None:
    chosen = choose([2, 3, 4], [enslaved(2, "eth0"), enslaved(3, "eth1"), link(4, "upper", kind)], addressed={4, 2})
    assert (chosen.joined, chosen.passed, chosen.warnings) == ([4], {}, [])


def test_members_of_a_master_that_is_down_are_not_joined() -> None:
    """They receive nothing under runc either."""
    assert choose([2], [enslaved(2, "eth0"), link(4, "bond0", "bond")], addressed={2}).joined == []


@pytest.mark.parametrize(
    ("kind", "data", "protocol"),
    [("vlan", VLAN, 0x8100), ("vlan", QINQ, 0x88A8), ("vlan", {}, 0x8100), ("macsec", "00:00", 0x88E5)],
)
@pytest.mark.parametrize("has_address", [True, False])
def test_parent_of_a_vlan_is_joined_if_it_has_addresses(kind: str, data: Any, protocol: int, has_address: bool) -> None:
    chosen = choose([2, 4], [ETH0, link(4, "upper", kind, data=data, LINK=2)], addressed={4, *([2] * has_address)})
    assert chosen.joined == ([2, 4] if has_address else [4])
    assert chosen.passed == {2: {protocol}}
    assert chosen.warnings == []


@pytest.mark.parametrize("kind", ["macvlan", "macvtap", "ipvlan", "ipvtap", "some-later-kind"])
@pytest.mark.parametrize("has_address", [True, False])
def test_parent_whose_frames_cannot_be_distinguished_is_not_joined(kind: str, has_address: bool) -> None:
    data = {"IFLA_IPVLAN_MODE": 1} if kind == "ipvlan" else None
    chosen = choose([2, 4], [ETH0, link(4, "upper", kind, data=data, LINK=2)], addressed={4, *([2] * has_address)})
    assert (chosen.joined, chosen.passed) == ([4], {})
    words = f"interface eth0 has addresses, but upper ({kind}) is above it: the guest gets only upper"
    assert chosen.warnings == ([words] if has_address else [])


@pytest.mark.parametrize("kind", ["macvlan", "ipvlan", "vlan"])
def test_parent_in_another_namespace_is_not_a_lower_interface(kind: str) -> None:
    """There IFLA_LINK is the number of an interface in the other namespace, which an interface of this one may have as
    well."""
    chosen = choose([2, 4], [ETH0, link(4, "eth1", kind, LINK=2, LINK_NETNSID=0)], addressed={2, 4})
    assert (chosen.joined, chosen.passed, chosen.warnings) == ([2, 4], {}, [])


@pytest.mark.parametrize("kind", ["veth", "netkit"])
def test_peer_is_not_a_lower_interface(kind: str) -> None:
    """Both ends of a veth pair are in one namespace."""
    chosen = choose([2, 3], [link(2, "a", kind, LINK=3), link(3, "b", kind, LINK=2)], addressed={2, 3})
    assert (chosen.joined, chosen.warnings) == ([2, 3], [])


@pytest.mark.parametrize("kind", ["vxlan", "geneve", "gretap", "ip6gretap", "erspan", "bareudp"])
def test_tunnel_is_joined_only_if_its_outer_packets_are_in_another_namespace(kind: str) -> None:
    here = choose([2, 4], [ETH0, link(4, "tunnel", kind, LINK=2)], addressed={2, 4})
    assert here.joined == [2]
    assert here.warnings == [
        f"interface tunnel is a tunnel ({kind}) to an address of the same namespace, which belongs to the guest: "
        "the guest does not get it"
    ]
    chosen_there = choose([2, 4], [ETH0, link(4, "tunnel", kind, LINK=2, LINK_NETNSID=0)], addressed={2, 4})
    assert (chosen_there.joined, chosen_there.warnings) == ([2, 4], [])


def test_members_of_a_vrf_are_joined_and_the_vrf_is_not() -> None:
    chosen = choose([2, 3, 4], [enslaved(2, "eth0"), ETH1, link(4, "red", "vrf", data={})], addressed={2})
    assert chosen.joined == [2, 3]
    assert chosen.warnings == [
        "interface red is a VRF, of which the guest gets only the members: the guest does not get it"
    ]


@pytest.mark.parametrize(("mode", "joined"), [(0, [4]), (1, [4]), (2, [])])
def test_ipvlan_in_mode_l3s_is_not_joined(mode: int, joined: list[int]) -> None:
    data = {"IFLA_IPVLAN_MODE": mode}
    chosen = choose([4], [link(4, "eth0", "ipvlan", data=data, LINK=2, LINK_NETNSID=0)], addressed={4})
    assert chosen.joined == joined
    warning = (
        "interface eth0 is an ipvlan in mode l3s, whose packets bypass traffic control (those of modes l2 and l3 do "
        "not): the guest does not get it"
    )
    assert chosen.warnings == ([] if joined else [warning])


def test_members_of_an_hsr_ring_are_not_joined() -> None:
    """pyroute2 does not decode this kind."""
    ring = link(4, "hsr0", "hsr", data="08:00:01:00:02:00:00:00:08:00:02:00:03:00:00:00:05:00:03:00:01")
    assert choose([2, 3, 4], [ETH0, ETH1, ring], addressed={4}).joined == [4]


def test_several_levels() -> None:
    """A VLAN with an address on a bond without one. The bond's members are VLANs of two NICs, one of which has an
    address."""
    messages = [
        ETH0, ETH1,
        link(4, "eth0.7", "vlan", data=VLAN, LINK=2, MASTER=6), link(5, "eth1.7", "vlan", data=VLAN, LINK=3, MASTER=6),
        link(6, "bond0", "bond"), link(7, "bond0.5", "vlan", data=VLAN, LINK=6),
    ]  # fmt: skip
    chosen = choose(range(2, 8), messages, addressed={2, 7})
    assert chosen.joined == [2, 7]
    assert chosen.passed[2] == {0x8100}


@pytest.mark.parametrize(
    ("upper", "joined", "words"),
    [
        (link(4, "eth0.5", "vlan", data=VLAN, LINK=2), [4], []),
        (
            link(4, "mv0", "macvlan", LINK=2), [],
            ["interface mv0 was created after the guest got eth0, its lower interface: the guest does not get it"],
        ),
    ],
)  # fmt: skip
def test_interface_created_above_one_that_the_guest_has(
    upper: dict[str, Any], joined: list[int], words: list[str]
) -> None:
    chosen = choose([4], [ETH0, upper], addressed={4}, taken={2})
    assert (chosen.joined, chosen.warnings) == (joined, words)
    assert chosen.passed == ({2: {0x8100}} if joined else {})


def test_bond_created_above_an_interface_that_the_guest_has() -> None:
    chosen = choose([4], [enslaved(2, "eth0"), link(4, "bond0", "bond")], addressed={4}, taken={2})
    assert chosen.joined == []
    assert chosen.warnings == [
        "interface bond0 was created after the guest got eth0, its lower interface: the guest does not get it"
    ]


def test_removed_interface_is_skipped() -> None:
    chosen = choose([2, 9], [ETH0, link(5, "x", "vlan", data=VLAN, LINK=77)], addressed=set())
    assert chosen.joined == [2]
