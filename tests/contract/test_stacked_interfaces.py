"""Stacked interfaces, with the kernel of the host: those that are joined, and the frames that arrive at their taps.

Tests of the lab cover types that not every kernel has: bonds, VLANs and ipvlans.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from hawse.host import network_namespace, redirects
from hawse.linux import netlink
from hawse.monitor.network.host_network import Joined, Network
from hawse.monitor.network.rx_filters import PAUSE_SECONDS, RxFilters
from hawse.tap_helper.main import _let_pass
from tests.support.fake_qmp import FakeQmp, rx_filter
from tests.support.netns import Namespace, cable
from tests.support.patience import patience

GROUP = "01:00:5e:01:02:03"
EXPERIMENTAL = 0x88B5  # IEEE Std 802, local experimental EtherType 1


@contextmanager
def joined(network: Network) -> Iterator[Joined]:
    """Join new interfaces of the namespace. Afterwards the taps are closed and the filters removed."""
    network.look()
    joining = network.take_joining()
    assert joining is not None
    interfaces, warnings = joining.wait()
    try:
        yield interfaces, warnings
    finally:
        for _, tap in interfaces:
            os.close(tap)


@pytest.fixture
def network(inside: Namespace, outside: Namespace, tmp_path: Path) -> Iterator[Network]:
    network = Network(inside.path, str(tmp_path))
    yield network
    network.close()
    assert outside.fd >= 0, "its ends of the cables exist"
    assert inside.traffic_control() == ""


def send(outside: Namespace, name: str, *frames: bytes) -> None:
    with network_namespace.within(outside.fd, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)) as sender:
        sender.bind((name, 0))
        for frame in frames:
            sender.send(frame)


def frame(to: str, text: bytes, *, tag: int = 0) -> bytes:
    """A frame of an unknown protocol, tagged with VLAN 5 of the protocol ``tag``."""
    packed = bytes.fromhex(to.replace(":", "")) + b"\x0a\0\0\0\0\x99"
    packed += tag.to_bytes(2, "big") + b"\0\5" if tag else b""
    return packed + EXPERIMENTAL.to_bytes(2, "big") + text.ljust(64)


def received(tap: int, last: bytes) -> list[bytes]:
    """The test frames that arrive at a tap, up to the last one."""
    frames: list[bytes] = []
    while not frames or frames[-1] != last:
        assert select.select([tap], [], [], patience(5))[0], frames
        read = os.read(tap, 4096)[10:]  # after the virtio header
        if read[6:12] == b"\x0a\0\0\0\0\x99":
            frames.append(read)
    return frames


def test_bridge_is_joined_and_its_ports_are_not(network: Network, inside: Namespace, outside: Namespace) -> None:
    for number in (1, 2):
        cable(inside, outside, f"port{number}", net=number)
    inside.ip("link add br0 address 0a:00:00:00:00:02 type bridge mcast_snooping 0")
    inside.ip("addr add 10.77.9.2/24 dev br0")
    inside.ip("link set br0 up")
    for number in (1, 2):
        inside.ip(f"link set port{number} master br0")
    with joined(network) as ([(interface, tap)], warnings):
        assert (interface["name"], warnings) == ("br0", [])
        first, last = frame("0a:00:00:00:00:02", b"first"), frame("ff:ff:ff:ff:ff:ff", b"last")
        send(outside, "port1", first, last)
        assert received(tap, last) == [first, last], "each once"
        # The bridge still forwards between its ports.
        with network_namespace.within(
            outside.fd, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        ) as listening:
            listening.bind(("port2", EXPERIMENTAL))
            listening.settimeout(patience(5))
            send(outside, "port1", last)
            assert listening.recv(4096) == last


def test_parent_of_a_macvlan_in_the_same_namespace_is_not_joined(
    network: Network, inside: Namespace, outside: Namespace
) -> None:
    cable(inside, outside, "eth0", net=1)
    inside.ip("link add mv0 link eth0 type macvlan mode bridge")
    inside.ip("link set mv0 up")
    with joined(network) as ([(interface, tap)], warnings):
        assert interface["name"] == "mv0"
        assert warnings == ["interface eth0 has addresses, but mv0 (macvlan) is above it: the guest gets only mv0"]
        last = frame(interface["mac"], b"last")
        send(outside, "eth0", last)
        assert received(tap, last) == [last]


def test_macvlan_over_an_interface_of_the_guest(network: Network, inside: Namespace, outside: Namespace) -> None:
    cable(inside, outside, "eth0", net=1)
    with joined(network) as ([_], []):
        inside.ip("link add mv0 link eth0 type macvlan mode bridge")
        inside.ip("link set mv0 up")
        with joined(network) as (nothing, warnings):
            assert nothing == []
            expected = (
                "interface mv0 was created after the guest got eth0, its lower interface: the guest does not get it"
            )
            assert warnings.count(expected) == 1


@pytest.mark.parametrize("tag", [netlink.ETH_P_8021Q, netlink.ETH_P_8021AD])
def test_frames_of_a_passed_protocol_reach_the_host(
    network: Network, inside: Namespace, outside: Namespace, tag: int
) -> None:
    """The filter for them is removed with the others, even if another program uses the qdisc."""
    from pyroute2 import IPRoute

    cable(inside, outside, "eth0", net=1)
    inside.tc("qdisc add dev eth0 clsact")
    last, tagged = frame("ff:ff:ff:ff:ff:ff", b"last"), frame("ff:ff:ff:ff:ff:ff", b"tagged", tag=tag)
    with joined(network) as ([(interface, tap)], _):
        send(outside, "eth0", tagged, last)
        assert received(tap, last) == [tagged, last]

        def let_pass() -> None:
            with IPRoute() as route:
                _let_pass(route, interface["index"], [tag])

        network_namespace.within(inside.fd, let_pass)
        send(outside, "eth0", tagged, last)
        assert received(tap, last) == [last]
        entry = {"index": interface["index"], "name": "eth0", "qdisc": False}
        network_namespace.within(inside.fd, lambda: redirects.undo([entry]))
        assert inside.tc("filter show dev eth0 ingress") == ""
    inside.tc("qdisc del dev eth0 clsact")


def test_memberships_of_a_macvlan_follow_the_guest(network: Network, inside: Namespace, outside: Namespace) -> None:
    """A macvlan drops frames to groups without members, except those of the kernel."""
    outside.ip("link add under type veth peer name other")
    outside.ip("link add eth0 link under address 0a:00:00:00:00:02 type macvlan mode bridge")
    outside.ip(f"link set eth0 netns {inside.name}")
    for name in ("under", "other"):
        outside.ip(f"link set {name} up")
    inside.ip("link set eth0 up")
    # A macvlan's broadcasts wait in a queue behind groups (drivers/net/macvlan.c, macvlan_broadcast_enqueue()).
    group, last = frame(GROUP, b"group"), frame("ff:ff:ff:ff:ff:ff", b"last")

    def counts(tap: int) -> int:
        send(outside, "other", group, last)
        return received(tap, last).count(group)

    def is_asked_for() -> bool:
        return GROUP in inside.execute("ip", "maddr", "show", "dev", "eth0")

    async def story(interface: dict[str, Any], tap: int) -> None:
        qmp, filters = FakeQmp(), RxFilters()
        filters.add("nic-net0", index=interface["index"], name="eth0", mac=interface["mac"])
        assert network.packets is not None
        filters.begin(cast(Any, qmp), network.packets)

        async def change(**changed: Any) -> tuple[int, bool]:
            qmp.rx_filters["nic-net0"] = [rx_filter(**changed)]
            await asyncio.sleep(0)
            qmp.change_rx_filter("nic-net0")
            await asyncio.sleep(3 * PAUSE_SECONDS)
            return counts(tap), is_asked_for()

        assert (counts(tap), is_asked_for()) == (0, False)
        assert await change(multicast_table=[GROUP]) == (1, True)
        # The kernel's filter of a macvlan keeps a group that is left until the next change (macvlan_set_mac_lists()).
        assert (await change())[1] is False
        assert await change(multicast="all") == (1, False)
        assert await change() == (0, False)
        assert await change(multicast_table=[GROUP]) == (1, True)
        filters.end()
        assert not is_asked_for()

    with joined(network) as ([(interface, tap)], []):
        asyncio.run(story(interface, tap))


def test_flags_are_read(network: Network, inside: Namespace, outside: Namespace) -> None:
    cable(inside, outside, "eth0", net=1, settings="arp off allmulticast on multicast off promisc on")
    with joined(network) as ([(interface, _)], []):
        assert interface["flags"] == 0x80 | 0x100 | 0x200
