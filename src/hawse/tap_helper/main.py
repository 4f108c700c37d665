"""A short-lived program that connects interfaces of a network namespace to taps, and sends the taps to the monitor.

``python -c "from hawse.tap_helper.main import main; main()" SOCKET NAMESPACE RECORD VERSION``: two inherited
descriptors, the path of a file, and the monitor's version of hawse, since the installation may have been updated after
the sandbox was started. The program reads one line of JSON from the socket, ``{"wanted": [index...]}``, and writes one,
``{"interfaces", "warnings"}`` or ``{"error"}``, followed by the descriptor of a tap for each interface.

It is a separate program since pyroute2 takes long to load and much memory, and since no thread of the monitor shall
enter another network namespace. Packets that arrive at an interface are redirected to its tap and vice versa, by the
u32 filter and action that tc(8) would set, as in Kata Containers (virtcontainers/network_linux.go, tcfilter). If the
answer cannot be sent, everything is undone: this also covers the monitor's death.
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
from typing import TYPE_CHECKING

from hawse.errors import HawseError, HostError
from hawse.host import network_namespace, redirects
from hawse.json_text import Document
from hawse.linux import netlink
from hawse.tap_helper.interfaces import Interface, addressed, attributes, read
from hawse.tap_helper.stacked import choose
from hawse.version import VERSION

if TYPE_CHECKING:
    from pyroute2 import IPRoute

_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_TUN_EXCL = 0x2, 0x1000, 0x4000, 0x8000
_MAX_REQUEST = 65536
_PASS = 0x10001  # the class of frames that pass; no program reads it
#: The settings of an interface that are copied to the guest (hawse.agent uses the same list).
_SETTINGS = ("ipv6/disable_ipv6", "ipv6/accept_ra", "ipv6/autoconf")


def main() -> None:
    """Serve one request."""
    connection, namespace, record = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), sys.argv[3]
    if sys.argv[4] != VERSION:
        updated = HostError(
            f"cannot connect the sandbox's new network interfaces: hawse was updated from {sys.argv[4][:40]} to "
            f"{VERSION} after the sandbox was started",
            hint="create the sandbox again",
        )
        connection.sendall(json.dumps({"error": updated.to_wire()}).encode() + b"\n")
        return
    with connection:
        indexes = json.loads(connection.recv(_MAX_REQUEST))["wanted"]
        network_namespace.enter(namespace)
        done: list[Document] = []
        try:
            try:
                answer, taps = _join(indexes, record, done)
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


def _join(indexes: list[int], record: str, done: list[Document]) -> tuple[Document, list[int]]:
    """Connect the interfaces to taps. Returns the answer and the descriptors of the taps.

    Raises :class:`HawseError`. ``done`` gets the redirects that the caller must undo then.
    """
    from pyroute2 import IPRoute, NetlinkError

    with IPRoute() as route:
        links, addresses, routes = list(route.get_links()), list(route.get_addr()), list(route.get_routes())
        names = {message["index"]: attributes(message)["IFLA_IFNAME"] for message in links}
        taken = {index for index in names if network_namespace.tap_name(index) in names.values()} - set(indexes)
        choice = choose(indexes, links, addressed=addressed(addresses, routes), taken=taken)
        interfaces, warnings = read(
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
            for each in interfaces:
                name = each.name
                taps.append(_make_tap(each))
                _redirect(route, each, choice.passed.get(each.index, ()), record, done)
                each.settings.update(_settings(name))
        except NetlinkError as error:
            reason = os.strerror(error.code)
            raise HostError(
                f"interface {name}: cannot redirect its packets: {reason[:1].lower()}{reason[1:]}",
                hint="the host kernel needs sch_ingress, cls_u32 and act_mirred",
            ) from None
    return {"interfaces": [asdict(each) for each in interfaces], "warnings": choice.warnings + warnings}, taps


def _make_tap(each: Interface) -> int:
    """Create the tap of an interface. It is not persistent: the kernel removes it when its descriptor is closed."""
    name = network_namespace.tap_name(each.index)
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | _IFF_TUN_EXCL
    try:
        tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    except OSError as error:
        if name in (other for _, other in socket.if_nameindex()):
            raise HostError(
                f"interface {each.name} of the network namespace belongs to another sandbox: its tap {name} exists",
                hint="stop the other sandbox first: only one VM can use an interface",
            ) from None
        raise HostError(
            f"cannot create a tap for interface {each.name}: {error.strerror}",
            hint="hawse needs /dev/net/tun (kernel module tun) and CAP_NET_ADMIN",
        ) from None
    # The host shall not send packets on the tap, such as its own router solicitations: the guest would receive them.
    try:
        with open(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6", "w") as file:
            file.write("1")
    except OSError:
        pass  # no IPv6, or a read-only /proc: then the guest receives the host's router solicitations
    return tap


def _redirect(route: IPRoute, each: Interface, passed: Iterable[int], record: str, done: list[Document]) -> None:
    """Redirect packets between an interface and its tap, in both directions.

    The redirection of the interface is created last: from then on the host's network stack receives only frames of the
    protocols ``passed``, which belong to upper interfaces.
    """
    tap = socket.if_nametoindex(network_namespace.tap_name(each.index))
    route.link("set", index=tap, mtu=each.mtu, state="up")
    route.tc("add", "ingress", index=tap, handle=netlink.INGRESS_HANDLE)
    _filter(route, tap, each.index)
    kinds = [dict(q["attrs"]).get("TCA_KIND") for q in route.get_qdiscs(index=each.index) if q["index"] == each.index]
    ingress = next((kind for kind in kinds if kind in ("ingress", "clsact")), None)
    filters = list(route.get_filters(index=each.index, parent=netlink.INGRESS_FILTERS)) if ingress else []
    ours = [entry for entry in filters if entry["info"] >> 16 in netlink.PRIORITIES.values()]
    # Treat a qdisc as created by hawse, too, if it has only filters of a sandbox that was killed.
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


def _let_pass(route: IPRoute, index: int, protocols: Iterable[int]) -> None:
    """Pass frames of these protocols to the host's network stack: add a filter that matches and has no action."""
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


def _filter(route: IPRoute, source: int, target: int) -> None:
    action = {"kind": "mirred", "direction": "egress", "action": "redirect", "ifindex": target}
    route.tc(
        "add-filter", "u32", index=source, parent=netlink.INGRESS_FILTERS, prio=netlink.PRIORITY,
        protocol=netlink.ETH_P_ALL, target=0, keys=["0x0/0x0+0"], action=action,
    )  # fmt: skip


def _settings(name: str) -> dict[str, str]:
    settings = {}
    for key in _SETTINGS:
        family, _, setting = key.partition("/")
        try:
            with open(f"/proc/sys/net/{family}/conf/{name}/{setting}") as file:
                settings[key] = file.read().strip()
        except OSError:
            continue
    return settings
