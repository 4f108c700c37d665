"""The configuration of the guest's interfaces, from the host kernel's dump of a network namespace. Pure.

The messages are pyroute2's: mappings of the header's fields and ``attrs``, a list of names and values.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from hawse.errors import ConfigError
from hawse.json_text import Document
from hawse.linux import netlink

#: A message of rtnetlink, as pyroute2 decodes it.
Message = Document
#: The keyword arguments of a function of :mod:`hawse.linux.netlink`.
Entry = Document

MAX_INTERFACES, MAX_ENTRIES = 64, 1024
MIN_MTU, MAX_MTU = 68, 65535
_INET, _INET6 = 2, 10
_FAMILIES = {_INET: 4, _INET6: 6}
_ETHERNET = 1  # ARPHRD_ETHER
_MAIN, _UNICAST = 254, 1
_BY_KERNEL, _BY_ROUTER = 2, 9  # RTPROT_KERNEL appears with its address, RTPROT_RA with the next advertisement
_LINK = 253  # RT_SCOPE_LINK
_CLONED, _ONLINK = 0x200, 4
_TEMPORARY, _DAD_FAILED, _KEPT_FLAGS = 0x01, 0x08, 0x200 | 0x400  # noprefixroute, autojoin
_PERMANENT = 0x80
_STANDARD_RULES = {0, 32766, 32767}
_MTU_LOCK = 1 << 2


@dataclass(frozen=True)
class Interface:
    """One interface, with its index in the host's network namespace."""

    index: int
    name: str
    mac: str
    mtu: int
    flags: int = 0
    settings: dict[str, str] = field(default_factory=dict)
    addresses: list[Entry] = field(default_factory=list)
    routes: list[Entry] = field(default_factory=list)
    neighbours: list[Entry] = field(default_factory=list)


def read(
    indexes: Iterable[int],
    *,
    links: Sequence[Message],
    addresses: Sequence[Message],
    routes: Sequence[Message],
    neighbours: Sequence[Message],
    rules: Sequence[Message] = (),
) -> tuple[list[Interface], list[str]]:
    """The interfaces with these indexes, sorted by index, and warnings about settings that the guest does not get.

    Raises :class:`ConfigError` if they exceed the guest's limits.
    """
    warnings: list[str] = []
    interfaces = {i.index: i for i in _links(sorted(set(indexes)), links, warnings)}
    if len(interfaces) > MAX_INTERFACES:
        raise ConfigError(
            f"the network namespace has {len(interfaces)} interfaces, but a guest supports at most {MAX_INTERFACES}"
        )
    for message in addresses:
        if interface := interfaces.get(message["index"]):
            _add(interface.addresses, _address(message, interface.name, warnings))
    for message in routes:
        values = attributes(message)
        if _is_meant(message, values):
            for index in _outputs(values) & interfaces.keys():
                name = interfaces[index].name
                _add(interfaces[index].routes, _route(message, values, name, warnings))
    for message in neighbours:
        if message["ifindex"] in interfaces and message["state"] & _PERMANENT:
            values = attributes(message)
            if "NDA_DST" in values and "NDA_LLADDR" in values and message["family"] in _FAMILIES:
                entry = {"to": values["NDA_DST"], "mac": values["NDA_LLADDR"]}
                _add(interfaces[message["ifindex"]].neighbours, entry)
    if interfaces and any(attributes(rule).get("FRA_PRIORITY", 0) not in _STANDARD_RULES for rule in rules):
        warnings.append(
            "the network namespace has policy routing rules: the guest gets only the routes of the main table"
        )
    for each in interfaces.values():
        for kind in ("addresses", "routes", "neighbours"):
            if len(getattr(each, kind)) > MAX_ENTRIES:
                raise ConfigError(
                    f"interface {each.name} has {len(getattr(each, kind))} {kind}, but a guest supports {MAX_ENTRIES}"
                )
    return list(interfaces.values()), warnings


def addressed(addresses: Sequence[Message], routes: Sequence[Message]) -> set[int]:
    """The indexes of interfaces with an address other than an IPv6 link-local one, or with a route that was added."""
    indexes = {
        m["index"] for m in addresses if m["family"] in _FAMILIES and (m["family"], m["scope"]) != (_INET6, _LINK)
    }
    for message in routes:
        values = attributes(message)
        if _is_meant(message, values):
            indexes |= _outputs(values)
    return indexes


def _links(indexes: Sequence[int], links: Sequence[Message], warnings: list[str]) -> Iterable[Interface]:
    by_index = {message["index"]: message for message in links}
    for index in indexes:
        if index not in by_index:
            continue  # the interface was removed in the meantime
        values = attributes(by_index[index])
        name, mac, mtu = values["IFLA_IFNAME"], values.get("IFLA_ADDRESS", ""), values.get("IFLA_MTU", 0)
        if by_index[index]["ifi_type"] != _ETHERNET or not _is_unicast(mac):
            warnings.append(f"interface {name} is not an Ethernet interface: the guest does not get it")
        elif not MIN_MTU <= mtu <= MAX_MTU:
            warnings.append(f"interface {name} has an MTU of {mtu}: the guest does not get it")
        else:
            yield Interface(index, name, mac, mtu, by_index[index]["flags"] & netlink.CARRIED_FLAGS)


def _address(message: Message, name: str, warnings: list[str]) -> Entry | None:
    values = attributes(message)
    if message["family"] not in _FAMILIES:
        return None
    flags: int = values["IFA_FLAGS"] if "IFA_FLAGS" in values else message["flags"]
    # The guest creates its own temporary addresses. For IPv4 the same bit marks a secondary address.
    if message["family"] == _INET6 and flags & _TEMPORARY:
        return None
    address = values.get("IFA_ADDRESS", "")
    local = values.get("IFA_LOCAL", address)
    if flags & _DAD_FAILED and message["family"] == _INET6:
        warnings.append(f"interface {name}: another host has its address {local}: the guest does not get it")
        return None
    entry: Entry = {"local": local, "prefix": message["prefixlen"], "scope": message["scope"]}
    if address != local:
        entry["peer"] = address
    for key, attribute in (("broadcast", "IFA_BROADCAST"), ("label", "IFA_LABEL"), ("metric", "IFA_RT_PRIORITY")):
        if values.get(attribute):
            entry[key] = values[attribute]
    if flags & _KEPT_FLAGS:
        entry["flags"] = flags & _KEPT_FLAGS
    return entry


def _is_meant(message: Message, values: Document) -> bool:
    return (
        message["family"] in _FAMILIES
        and values.get("RTA_TABLE", message["table"]) == _MAIN
        and message["type"] == _UNICAST
        and message["proto"] not in (_BY_KERNEL, _BY_ROUTER)
        and not message["flags"] & _CLONED
    )


def _outputs(values: Document) -> set[int]:
    """The indexes of a route's output interfaces."""
    hops = values.get("RTA_MULTIPATH")
    return {hop["oif"] for hop in hops} if hops else {values.get("RTA_OIF", 0)}


def _route(message: Message, values: Document, name: str, warnings: list[str]) -> Entry | None:
    to = values.get("RTA_DST", "")
    for attribute, what in (("RTA_MULTIPATH", "several gateways"), ("RTA_ENCAP", "an encapsulation")):
        if attribute in values:
            shown = f"{to}/{message['dst_len']}" if to else "default"
            warnings.append(f"interface {name}: the route {shown} has {what}: the guest does not get it")
            return None
    via = values.get("RTA_VIA") or {}
    entry: Entry = {"family": _FAMILIES[message["family"]], "to": to, "prefix": message["dst_len"]}
    entry |= {"scope": message["scope"], "protocol": message["proto"]}
    optional = {
        "gateway": values.get("RTA_GATEWAY") or via.get("addr", ""),
        "source": values.get("RTA_PREFSRC", ""),
        "metric": values.get("RTA_PRIORITY", 0),
        "flags": message["flags"] & _ONLINK,
    }
    metrics = attributes(values["RTA_METRICS"]) if "RTA_METRICS" in values else {}
    optional |= {"mtu": metrics.get("RTAX_MTU", 0), "mtu_locked": bool(metrics.get("RTAX_LOCK", 0) & _MTU_LOCK)}
    return entry | {key: value for key, value in optional.items() if value}


def _add(entries: list[Entry], entry: Entry | None) -> None:
    if entry is not None:
        entries.append(entry)


def attributes(message: Message) -> Document:
    """The attributes of a message, or of a nested attribute."""
    return dict(message["attrs"])


def _is_unicast(mac: str) -> bool:
    return re.fullmatch(r"([0-9a-f]{2}:){5}[0-9a-f]{2}", mac) is not None and not int(mac[:2], 16) & 1
