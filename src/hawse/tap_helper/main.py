"""A short-lived program that joins interfaces of a network namespace to taps, which it hands to the monitor.

``python -c "from hawse.tap_helper.main import main; main()" SOCKET NAMESPACE RECORD VERSION``, two inherited
descriptors, a file and the version of hawse that the monitor is of: the installation may have been updated since the
sandbox was started. One line of JSON comes in over the socket, ``{"wanted": [index...]}``; one goes out,
``{"interfaces", "warnings"}`` or ``{"error"}``, and a tap's descriptor after it for each interface.

A program of its own, since pyroute2 takes long to load and much memory to keep, and since nothing of the monitor is to
be in another network namespace. What arrives at an interface leaves at its tap, and the other way around: the u32
filter and action that tc(8) would set, as Kata Containers does (virtcontainers/network_linux.go, tcfilter). If the
answer cannot be handed over, everything is undone, so that the monitor's death needs no other signal.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import struct
import sys
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from hawse.errors import HawseError, HostError
from hawse.host import network_namespace, redirects
from hawse.linux import netlink
from hawse.tap_helper.interfaces import Interface, addressed, attributes, read
from hawse.tap_helper.stacked import choose
from hawse.version import VERSION

_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_TUN_EXCL = 0x2, 0x1000, 0x4000, 0x8000
_MAX_REQUEST = 65536
_PASS = 0x10001  # the class of what passes, which nothing reads
#: What is carried over of the interface's own settings; the agent knows the same.
_SETTINGS = ("ipv6/disable_ipv6", "ipv6/accept_ra", "ipv6/autoconf")


def main() -> None:
    """Do what is asked for once."""
    connection, namespace, record = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), sys.argv[3]
    if sys.argv[4] != VERSION:
        updated = HostError(
            f"the sandbox has new network interfaces, and hawse was updated from {sys.argv[4][:40]} to {VERSION} since "
            "the sandbox was started",
            hint="create the sandbox again",
        )
        connection.sendall(json.dumps({"error": updated.to_wire()}).encode() + b"\n")
        return
    with connection:
        wanted = json.loads(connection.recv(_MAX_REQUEST))["wanted"]
        network_namespace.enter(namespace)
        done: list[dict[str, Any]] = []
        try:
            try:
                answer, taps = _join(wanted, record, done)
            except HawseError as error:
                redirects.undo(done)
                connection.sendall(json.dumps({"error": error.to_wire()}).encode() + b"\n")
                return
            connection.sendall(json.dumps(answer).encode() + b"\n")
            for tap in taps:
                socket.send_fds(connection, [b"t"], [tap])
        except BaseException:
            redirects.undo(done)
            raise


def _join(wanted: list[int], record: str, done: list[dict[str, Any]]) -> tuple[dict[str, Any], list[int]]:
    """Join them all. Raises :class:`HawseError`; what is to be undone is in ``done``."""
    from pyroute2 import IPRoute, NetlinkError

    with IPRoute() as route:
        links, addresses, routes = list(route.get_links()), list(route.get_addr()), list(route.get_routes())
        names = {message["index"]: attributes(message)["IFLA_IFNAME"] for message in links}
        taken = {index for index in names if network_namespace.tap_name(index) in names.values()} - set(wanted)
        choice = choose(wanted, links, addressed=addressed(addresses, routes), taken=taken)
        found, warnings = read(
            choice.joined,
            links=links,
            addresses=addresses,
            routes=routes,
            neighbours=list(route.get_neighbours()),
            rules=[*route.get_rules(family=socket.AF_INET), *route.get_rules(family=socket.AF_INET6)],
        )
        taps = []
        name = ""
        try:
            for index in sorted(taken & choice.passed.keys()):
                name = names[index]
                _let_pass(route, index, choice.passed[index])
            for each in found:
                name = each.name
                taps.append(_make_tap(each))
                _redirect(route, each, choice.passed.get(each.index, ()), record, done)
                each.settings.update(_settings(name))
        except NetlinkError as error:
            reason = os.strerror(error.code)
            raise HostError(
                f"interface {name}: cannot redirect its packets: {reason[:1].lower()}{reason[1:]}",
                hint="the host's kernel needs sch_ingress, cls_u32 and act_mirred",
            ) from None
    return {"interfaces": [asdict(each) for each in found], "warnings": choice.warnings + warnings}, taps


def _make_tap(each: Interface) -> int:
    """The tap of an interface; it lives as long as its descriptor, since it is not made persistent."""
    name = network_namespace.tap_name(each.index)
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | _IFF_TUN_EXCL
    try:
        tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    except OSError as error:
        if name in (other for _, other in socket.if_nameindex()):
            raise HostError(
                f"interface {each.name} of the network namespace is another sandbox's: {name} is there",
                hint="two virtual machines cannot have one interface; end the other first",
            ) from None
        raise HostError(
            f"cannot make a tap for interface {each.name}: {error.strerror}",
            hint="hawse needs /dev/net/tun (the kernel's module tun) and CAP_NET_ADMIN",
        ) from None
    # The host has nothing to say on it: packets of its own would reach the guest.
    try:
        with open(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6", "w") as file:
            file.write("1")
    except OSError:
        pass  # no IPv6, or a /proc that is read-only: the guest then hears a stranger's router solicitations
    return tap


def _redirect(route: Any, each: Interface, passed: Iterable[int], record: str, done: list[dict[str, Any]]) -> None:
    """Both ways; the interface's own is last, since the host's stack hears nothing from then on.

    But for frames of the protocols ``passed``, which are of interfaces over this one.
    """
    tap = socket.if_nametoindex(network_namespace.tap_name(each.index))
    route.link("set", index=tap, mtu=each.mtu, state="up")
    route.tc("add", "ingress", index=tap, handle=netlink.INGRESS_HANDLE)
    _filter(route, tap, each.index)
    kinds = [dict(q["attrs"]).get("TCA_KIND") for q in route.get_qdiscs(index=each.index) if q["index"] == each.index]
    ingress = next((kind for kind in kinds if kind in ("ingress", "clsact")), None)
    filters = list(route.get_filters(index=each.index, parent=netlink.INGRESS_FILTERS)) if ingress else []
    ours = [entry for entry in filters if entry["info"] >> 16 in netlink.PRIORITIES.values()]
    # One that holds nothing but filters of a sandbox that was killed is as good as our own.
    owned = ingress is None or (ingress == "ingress" and bool(ours) and len(ours) == len(filters))
    entry = {"index": each.index, "name": each.name, "qdisc": owned}
    redirects.note(record, entry)
    done.append(entry)
    if ingress is None:
        route.tc("add", "ingress", index=each.index, handle=netlink.INGRESS_HANDLE)
    elif ours:
        redirects.undo([entry | {"qdisc": False}])
    _let_pass(route, each.index, passed)
    _filter(route, each.index, tap)


def _let_pass(route: Any, index: int, protocols: Iterable[int]) -> None:
    """Have frames of these protocols go on to the host's stack: a filter that matches and has no action."""
    from pyroute2 import NetlinkError

    for protocol in sorted(protocols):
        try:
            route.tc(
                "add-filter", "u32", index=index, parent=netlink.INGRESS_FILTERS, prio=netlink.PRIORITIES[protocol],
                protocol=protocol, target=_PASS, keys=["0x0/0x0+0"],
            )  # fmt: skip
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise


def _filter(route: Any, source: int, target: int) -> None:
    action = {"kind": "mirred", "direction": "egress", "action": "redirect", "ifindex": target}
    route.tc(
        "add-filter", "u32", index=source, parent=netlink.INGRESS_FILTERS, prio=netlink.PRIORITY,
        protocol=netlink.ETH_P_ALL, target=0, keys=["0x0/0x0+0"], action=action,
    )  # fmt: skip


def _settings(name: str) -> dict[str, str]:
    found = {}
    for key in _SETTINGS:
        family, _, setting = key.partition("/")
        try:
            with open(f"/proc/sys/net/{family}/conf/{name}/{setting}") as file:
                found[key] = file.read().strip()
        except OSError:
            continue
    return found
