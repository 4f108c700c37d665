"""Encode rtnetlink messages (rtnetlink(7), include/uapi/linux/rtnetlink.h), for the agent and for cleanup on the host.

It does not use pyroute2, which the host uses for everything else: without KVM pyroute2 takes a sixth of a second to
load, and it needs more memory than the agent may use. The agent and the hot verbs use only the standard library.
"""

from __future__ import annotations

import os
import socket
import struct

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from collections.abc import Sequence

REQUEST, ACK, EXCL, CREATE = 0x1, 0x4, 0x200, 0x400
NEW_LINK, NEW_ADDRESS, NEW_ROUTE, NEW_NEIGHBOUR, DELETE_QDISC, DELETE_FILTER = 16, 20, 24, 28, 37, 45
INGRESS = 0xFFFFFFF1
#: The handle of every ingress and clsact qdisc (include/uapi/linux/pkt_sched.h).
INGRESS_HANDLE = 0xFFFF0000
#: The parent of ingress filters: clsact requires this one, and ingress accepts any (net/sched/sch_ingress.c).
INGRESS_FILTERS = 0xFFFFFFF2
ETH_P_ALL, ETH_P_8021Q, ETH_P_8021AD, ETH_P_MACSEC = 3, 0x8100, 0x88A8, 0x88E5
#: The priorities of hawse's filters, which distinguish them from filters of other programs, and the protocol of each.
#: One priority has one protocol (net/sched/cls_api.c, tcf_chain_tp_find()). Filters that pass frames precede the
#: redirection.
PRIORITY = 0x4857
PRIORITIES = {
    ETH_P_8021Q: PRIORITY - 3, ETH_P_8021AD: PRIORITY - 2, ETH_P_MACSEC: PRIORITY - 1, ETH_P_ALL: PRIORITY,
}  # fmt: skip
#: The flags of an interface that a user can set (net/core/dev.c, __dev_change_flags()), except up: no trailers, no ARP,
#: promiscuous, all multicast, multicast, dynamic.
CARRIED_FLAGS = 0x20 | 0x80 | 0x100 | 0x200 | 0x1000 | 0x8000

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_LINK, _ADDRESS, _ROUTE = struct.Struct("=BxHiII"), struct.Struct("=BBBBI"), struct.Struct("=8BI")
_NEIGHBOUR, _TRAFFIC = struct.Struct("=BxHiHBB"), struct.Struct("=BxHiIII")
_UP = 1
_NET_NS_PID = 19  # include/uapi/linux/if_link.h
_NO_DAD = 0x02
_PERMANENT = 0x80
_UNICAST = 1
_MAIN = 254
_ERROR = 2
_MAX = 65536
_FAMILIES = {4: (socket.AF_INET, 32), 6: (socket.AF_INET6, 128)}


def link(
    index: int, *, name: str = "", mtu: int = 0, up: bool = False, pid: int = 0, flags: int | None = None
) -> bytes:
    """Change an interface; parameters that are not passed remain unchanged.

    ``pid``: move it to the network namespace of that process. ``flags``: the new values of :data:`CARRIED_FLAGS`.
    """
    changed = (_UP if up else 0) | (CARRIED_FLAGS if flags is not None else 0)
    body = _LINK.pack(0, 0, index, (_UP if up else 0) | (flags or 0) & CARRIED_FLAGS, changed)
    if name:
        body += attribute(3, name.encode() + b"\0")
    if mtu:
        body += attribute(4, struct.pack("=I", mtu))
    if pid:
        body += attribute(_NET_NS_PID, struct.pack("=I", pid))
    return message(NEW_LINK, body)


# Large: the parameters are the attributes of RTM_NEWADDR (rtnetlink(7)).
def address(
    index: int, *, local: str, prefix: int, peer: str = "", broadcast: str = "", scope: int = 0, flags: int = 0,
    label: str = "", metric: int = 0,
) -> bytes:  # fmt: skip
    """Add an address to an interface, without duplicate address detection: the host has done that already."""
    family, packed = pack(local)
    if family == socket.AF_INET6:
        flags |= _NO_DAD
    body = _ADDRESS.pack(family, _within(prefix, len(packed) * 8), 0, scope, index) + attribute(2, packed)
    body += attribute(1, pack(peer, family)[1] if peer else packed)
    if broadcast:
        body += attribute(4, pack(broadcast, family)[1])
    if label:
        body += attribute(3, label.encode() + b"\0")
    if metric:
        body += attribute(9, struct.pack("=I", metric))
    return message(NEW_ADDRESS, body + attribute(8, struct.pack("=I", flags)), flags=CREATE | EXCL)


# Large: the parameters are the attributes of RTM_NEWROUTE (rtnetlink(7)).
def route(
    index: int, *, family: int, to: str, prefix: int, gateway: str = "", source: str = "", metric: int = 0,
    scope: int = 0, protocol: int = 0, flags: int = 0, mtu: int = 0, mtu_locked: bool = False,
) -> bytes:  # fmt: skip
    """Add a unicast route to the main table; ``to`` is "" for the default route, ``family`` is 4 or 6.

    A gateway of the other family goes in the attribute RTA_VIA (net/ipv4/fib_semantics.c, fib_gw_from_via()).
    """
    number, bits = _FAMILIES[family]
    body = _ROUTE.pack(number, _within(prefix, bits), 0, 0, _MAIN, protocol, scope, _UNICAST, flags)
    if to:
        body += attribute(1, pack(to, number)[1])
    body += attribute(4, struct.pack("=I", index))
    if gateway:
        via, packed = pack(gateway)
        body += attribute(5, packed) if via == number else attribute(18, struct.pack("=H", via) + packed)
    if metric:
        body += attribute(6, struct.pack("=I", metric))
    if source:
        body += attribute(7, pack(source, number)[1])
    if mtu:
        locked = attribute(1, struct.pack("=I", 1 << 2)) if mtu_locked else b""
        body += attribute(8, locked + attribute(2, struct.pack("=I", mtu)))
    return message(NEW_ROUTE, body, flags=CREATE | EXCL)


def neighbour(index: int, *, to: str, mac: str) -> bytes:
    """Add a permanent neighbour entry."""
    family, packed = pack(to)
    body = _NEIGHBOUR.pack(family, 0, index, _PERMANENT, 0, 0) + attribute(1, packed)
    return message(NEW_NEIGHBOUR, body + attribute(2, bytes.fromhex(mac.replace(":", ""))), flags=CREATE)


def no_ingress(index: int) -> bytes:
    """Delete the ingress qdisc of an interface, with its filters."""
    return message(DELETE_QDISC, _TRAFFIC.pack(0, 0, index, INGRESS_HANDLE, INGRESS, 0))


def no_filters(index: int) -> list[bytes]:
    """Delete hawse's ingress filters of an interface; filters of other programs have other priorities.

    Returns a message for each priority, the redirection's last. The kernel answers ENOENT for a missing filter.
    """
    infos = [priority << 16 | socket.htons(protocol) for protocol, priority in PRIORITIES.items()]
    return [message(DELETE_FILTER, _TRAFFIC.pack(0, 0, index, 0, INGRESS_FILTERS, info)) for info in infos]


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded to four bytes (netlink(7))."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(payload), kind) + payload + bytes(-len(payload) % 4)


def message(kind: int, body: bytes, *, flags: int = 0, number: int = 1) -> bytes:
    """A request that the kernel acknowledges."""
    return _HEADER.pack(_HEADER.size + len(body), kind, REQUEST | ACK | flags, number, 0) + body


def pack(text: str, family: int = 0) -> tuple[int, bytes]:
    """Family and bytes of an IP address. Raises ValueError if it is invalid or not of ``family`` (0: any)."""
    detected = socket.AF_INET6 if ":" in text else socket.AF_INET
    if family not in (0, detected):
        raise ValueError(f"{text} is an address of another family")
    try:
        return detected, socket.inet_pton(detected, text)
    except OSError:
        raise ValueError(f"{text} is not an IP address") from None


def verdict(answer: bytes) -> int:
    """The error number in the kernel's acknowledgement, 0 for success. Raises ValueError for any other message."""
    if len(answer) < _HEADER.size + 4:
        raise ValueError("truncated answer of rtnetlink")
    _, kind, *_ = _HEADER.unpack_from(answer)
    if kind != _ERROR:
        raise ValueError(f"unexpected answer of rtnetlink, of type {kind}")
    code: int = struct.unpack_from("=i", answer, _HEADER.size)[0]
    return -code


def talk(messages: Sequence[bytes]) -> None:
    """Send the messages in order, in the calling thread's network namespace. Raises OSError at the first failure."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as connection:
        connection.bind((0, 0))
        for each in messages:
            connection.send(each)
            code = verdict(connection.recv(_MAX))
            if code:
                raise OSError(code, os.strerror(code))


def _within(prefix: int, bits: int) -> int:
    if not 0 <= prefix <= bits:
        raise ValueError(f"a prefix of {prefix} bits for an address of {bits} bits")
    return prefix
