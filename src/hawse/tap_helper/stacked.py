"""Interfaces of a network namespace that use others of it: which of them the guest gets. Pure.

A container under runc has all of them. The guest has a NIC for each that is joined to a tap, and a tap takes everything
that arrives at its interface (traffic control comes before the handlers of bonds, bridges and VLANs:
net/core/dev.c, __netif_receive_skb_core()). So an interface below another one that the guest gets is not joined, unless
the frames of the two can be told apart:

- A member of a bond, team, bridge, HSR ring or other master gives all that it receives to its master. It is left.
- The parent of a VLAN or of MACsec keeps the frames that are not tagged so. Where it has addresses or routes, it is an
  interface of the container as well: both are joined, and the parent's frames of that protocol go on to the host's
  stack, which gives them to the upper one. Where it has none, it only carries the VLAN, and is left.
- The parent of a macvlan or ipvlan shares broadcasts with it, and for ipvlan its hardware address. It is left, with a
  warning where it has addresses.
- A member of a VRF keeps its packets and addresses: it is joined, and the VRF itself is not, since the guest has none.
- A tunnel over IP whose outer packets come to an address of the same namespace gets nothing from the host's stack,
  which hears nothing any more. It is not joined.
- The other end of a veth or netkit pair (IFLA_LINK as well) is a peer, and none of this.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hawse.linux import netlink
from hawse.tap_helper.interfaces import Message, attributes

#: By their kinds (IFLA_INFO_KIND). Of "veth" and its like IFLA_LINK is the peer.
_PEERS = {"veth", "netkit", "vxcan"}
#: Outer packets of these are IP packets to an address of the namespace that the tunnel was created in.
_TUNNELS = {"vxlan", "geneve", "gretap", "ip6gretap", "erspan", "ip6erspan", "bareudp", "l2tpeth"}
_VRF, _HSR, _IPVLAN = "vrf", "hsr", "ipvlan"
_L3S = 2  # IPVLAN_MODE_L3S, include/uapi/linux/if_link.h


@dataclass(frozen=True)
class Choice:
    """``joined`` are indexes; ``passed`` has, by the index of a parent, protocols of frames that are its uppers'."""

    joined: list[int] = field(default_factory=list)
    passed: dict[int, set[int]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Link:
    index: int
    name: str
    kind: str
    lowers: frozenset[int]
    master: int
    data: Mapping[str, Any]
    is_foreign: bool  # it was created in another namespace, where its lower interface or its addresses are


def choose(
    wanted: Collection[int], messages: Sequence[Message], *, addressed: Collection[int], taken: Collection[int] = ()
) -> Choice:
    """Decide on the interfaces ``wanted``, which are up.

    ``messages`` are all links of the namespace, ``addressed`` the indexes of those with addresses or routes. ``taken``
    are those that the guest has already: what came over them since gets nothing, but for VLANs.
    """
    links = {link.index: link for link in map(_parse, messages)}
    choice = Choice()
    used: dict[int, _Link] = {}  # lower interfaces, each with one that takes everything from it
    carried: set[int] = set()  # parents of those that take frames of one protocol
    for link in links.values():
        if link.master in links and links[link.master].kind != _VRF:
            used[link.index] = links[link.master]
    for index in sorted(set(wanted) & links.keys()):
        link = links[index]
        for lower in () if _obstacle(link) else sorted(link.lowers & links.keys()):
            protocol = _protocol(link)
            if protocol:
                choice.passed.setdefault(lower, set()).add(protocol)
                carried.add(lower)
            else:
                used.setdefault(lower, link)
                if lower in addressed and not links[lower].master:
                    choice.warnings.append(
                        f"interface {links[lower].name} has addresses, and {link.name} ({link.kind}) is over it: "
                        f"the guest gets {link.name} only"
                    )
    for index in sorted(set(wanted) & links.keys()):
        link = links[index]
        late = sorted(links[lower].name for lower in taken if lower in used and used[lower].index == index)
        reason = _obstacle(link) or (f"came after {late[0]} below it, which the guest has" if late else "")
        if reason:
            choice.warnings.append(f"interface {link.name} {reason}: the guest does not get it")
        elif index not in used and (index not in carried or index in addressed):
            choice.joined.append(index)
    return choice


def _obstacle(link: _Link) -> str:
    """Why no tap gets what arrives at an interface, "" where one does."""
    if link.kind == _VRF:
        return "is a VRF, of which the guest gets the members only"
    if link.kind in _TUNNELS and not link.is_foreign:
        return f"is a tunnel ({link.kind}) to an address of the same namespace, which the guest has"
    if link.kind == _IPVLAN and link.data.get("IFLA_IPVLAN_MODE") == _L3S:
        return "is an ipvlan of mode l3s, whose packets do not pass traffic control (modes l2 and l3 do)"
    return ""


def _protocol(link: _Link) -> int:
    """The protocol of the frames that an interface takes from its parent, 0 for all of them."""
    if link.kind == "vlan":
        return int(link.data.get("IFLA_VLAN_PROTOCOL", netlink.ETH_P_8021Q))
    return netlink.ETH_P_MACSEC if link.kind == "macsec" else 0


def _parse(message: Message) -> _Link:
    values = attributes(message)
    info = attributes(values["IFLA_LINKINFO"]) if "IFLA_LINKINFO" in values else {}
    kind, data = str(info.get("IFLA_INFO_KIND", "")), info.get("IFLA_INFO_DATA")
    is_foreign = "IFLA_LINK_NETNSID" in values
    lowers: set[int] = set()
    if kind == _HSR:
        lowers = _members(data)
    elif kind not in _PEERS | _TUNNELS and not is_foreign:
        lowers = {values.get("IFLA_LINK", 0)} - {0, None, message["index"]}
    known = attributes(data) if isinstance(data, Mapping) else {}
    master = values.get("IFLA_MASTER", 0)
    return _Link(message["index"], values["IFLA_IFNAME"], kind, frozenset(lowers), master, known, is_foreign)


def _members(data: object) -> set[int]:
    """The members of an HSR ring, whose attributes pyroute2 leaves as "08:00:01:00:...".

    IFLA_HSR_SLAVE1 and IFLA_HSR_SLAVE2 (include/uapi/linux/if_link.h) are the numbers of interfaces.
    """
    if not isinstance(data, str):
        return set()
    rest, found = bytes.fromhex(data.replace(":", "")), set()
    while len(rest) >= 4:
        size, kind = int.from_bytes(rest[:2], "little"), int.from_bytes(rest[2:4], "little")
        if kind in (1, 2) and size == 8:
            found.add(int.from_bytes(rest[4:8], "little"))
        rest = rest[max(size + 3 & ~3, 4) :]
    return found
