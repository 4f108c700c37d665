"""Stacked interfaces of a network namespace: which of them the guest gets. Pure.

A container under runc has all of them. The guest has a NIC for each interface that is connected ("joined") to a tap,
and a tap receives all packets that arrive at its interface: traffic control precedes the handlers of bonds, bridges and
VLANs (net/core/dev.c, __netif_receive_skb_core()). So a lower interface is not joined if the guest gets the upper one,
unless the frames of the two can be distinguished:

- A member of a bond, team, bridge, HSR ring or other master passes all its packets to the master. It is not joined.
- The parent of a VLAN or of MACsec keeps the frames without the tag. With addresses or routes it is an interface of the
  container as well: both are joined, and the parent's frames of that protocol pass to the host's network stack, which
  delivers them to the upper interface. Otherwise the parent only carries the VLAN, and is not joined.
- The parent of a macvlan or ipvlan shares broadcasts with it, and for ipvlan its hardware address. It is not joined;
  if it has addresses, there is a warning.
- A member of a VRF keeps its packets and addresses: it is joined. The VRF itself is not, since the guest has no VRF.
- A tunnel over IP whose outer packets arrive at an address of the same namespace gets no packets from the host's
  network stack, which does not receive them any more. It is not joined.
- The other end of a veth or netkit pair (in IFLA_LINK as well) is a peer: none of this applies to it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from hawse.json_text import Document
from hawse.linux import netlink
from hawse.tap_helper.interfaces import Message, attributes

#: Kinds of interfaces (IFLA_INFO_KIND) whose IFLA_LINK is the peer.
_PEERS = {"veth", "netkit", "vxcan"}
#: Tunnels whose outer packets are IP packets to an address of the namespace in which the tunnel was created.
_TUNNELS = {"vxlan", "geneve", "gretap", "ip6gretap", "erspan", "ip6erspan", "bareudp", "l2tpeth"}
_VRF, _HSR, _IPVLAN = "vrf", "hsr", "ipvlan"
_L3S = 2  # IPVLAN_MODE_L3S, include/uapi/linux/if_link.h


@dataclass(frozen=True)
class Choice:
    """``joined``: the indexes of the interfaces that get a tap. ``passed``: by the index of a parent, the protocols of
    the frames that belong to its upper interfaces."""

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
    data: Document
    is_foreign: bool  # created in another namespace, where its lower interface or its addresses are


def choose(
    indexes: Collection[int], messages: Sequence[Message], *, addressed: Collection[int], taken: Collection[int] = ()
) -> Choice:
    """Decide which of the interfaces ``indexes``, all of which are up, the guest gets.

    ``messages``: all links of the namespace. ``addressed``: the indexes of interfaces with addresses or routes.
    ``taken``: those of interfaces that the guest has already; an interface that was created above one of them since
    then receives no packets, unless it is a VLAN or MACsec.
    """
    links = {link.index: link for link in map(_parse, messages)}
    choice = Choice()
    used: dict[int, _Link] = {}  # lower interfaces, each with an upper one that receives all of its packets
    carried: set[int] = set()  # parents of interfaces that receive the frames of one protocol
    for link in links.values():
        if link.master in links and links[link.master].kind != _VRF:
            used[link.index] = links[link.master]
    for index in sorted(set(indexes) & links.keys()):
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
                        f"interface {links[lower].name} has addresses, but {link.name} ({link.kind}) is above it: "
                        f"the guest gets only {link.name}"
                    )
    for index in sorted(set(indexes) & links.keys()):
        link = links[index]
        late = sorted(links[lower].name for lower in taken if lower in used and used[lower].index == index)
        reason = _obstacle(link) or (f"was created after the guest got {late[0]}, its lower interface" if late else "")
        if reason:
            choice.warnings.append(f"interface {link.name} {reason}: the guest does not get it")
        elif index not in used and (index not in carried or index in addressed):
            choice.joined.append(index)
    return choice


def _obstacle(link: _Link) -> str:
    """Why a tap would not receive the packets of an interface, "" if it does."""
    if link.kind == _VRF:
        return "is a VRF, of which the guest gets only the members"
    if link.kind in _TUNNELS and not link.is_foreign:
        return f"is a tunnel ({link.kind}) to an address of the same namespace, which belongs to the guest"
    if link.kind == _IPVLAN and link.data.get("IFLA_IPVLAN_MODE") == _L3S:
        return "is an ipvlan in mode l3s, whose packets bypass traffic control (those of modes l2 and l3 do not)"
    return ""


def _protocol(link: _Link) -> int:
    """The protocol of the frames that an interface receives from its parent, 0 for all frames."""
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
    fields = attributes(data) if isinstance(data, dict) else {}
    master = values.get("IFLA_MASTER", 0)
    return _Link(message["index"], values["IFLA_IFNAME"], kind, frozenset(lowers), master, fields, is_foreign)


def _members(data: object) -> set[int]:
    """The indexes of the members of an HSR ring. pyroute2 does not decode its attributes: "08:00:01:00:...".

    IFLA_HSR_SLAVE1 and IFLA_HSR_SLAVE2 (include/uapi/linux/if_link.h) contain the indexes of interfaces.
    """
    if not isinstance(data, str):
        return set()
    rest, members = bytes.fromhex(data.replace(":", "")), set()
    while len(rest) >= 4:
        size, kind = int.from_bytes(rest[:2], "little"), int.from_bytes(rest[2:4], "little")
        if kind in (1, 2) and size == 8:
            members.add(int.from_bytes(rest[4:8], "little"))
        rest = rest[max(size + 3 & ~3, 4) :]
    return members
