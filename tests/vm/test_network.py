"""Packets and settings of a container's network, compared with runc in the same network namespace."""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from hawse.host import network_namespace
from tests.support.bundles import busybox, drop_cgroups, write
from tests.support.netns import Namespace, cable, run
from tests.support.networks import BOX, bundle_in, is_clean
from tests.support.patience import patience, wait_until
from tests.support.programs import compiled_file
from tests.support.refusals import fails
from tests.support.runtime import Runtime

pytestmark = pytest.mark.vm

#: Prints what a program can see of its network, except counters, times and the queues of the device.
SHOW = f"""
cd /sys/class/net; for i in *; do echo "$i" "$(cat $i/mtu)" "$(cat $i/address)" "$(cat $i/flags)"; done
{BOX} ip -o link | {BOX} sed -n 's/.*\\(lo\\|eth[0-9]\\)[@:].*<\\(.*\\)>.*/\\1 \\2/p'
{BOX} ip addr | grep -o 'inet.*' | {BOX} sed 's/ flags.*//'
{BOX} ip route; {BOX} ip -6 route; {BOX} ip neigh | grep PERMANENT
cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv6/conf/eth*/accept_ra /etc/resolv.conf
"""


def test_program_sees_the_same_network_as_with_runc(
    runtime: Runtime, tmp_path: Path, inside: Namespace, outside: Namespace
) -> None:
    cable(inside, outside, "eth0", net=1, settings="mtu 1400 address 0a:00:00:00:00:02")
    cable(inside, outside, "eth1", net=2, settings="allmulticast on promisc on dynamic on")
    cable(inside, outside, "eth2", net=3, settings="arp off multicast off")
    for words in (
        "addr add 10.77.1.3/24 dev eth0", "addr add 10.78.0.2 peer 10.78.0.1/32 dev eth0",
        "addr add fd78::2/128 dev eth1 nodad", "addr add 10.79.0.2/24 dev eth1 noprefixroute label eth1:a",
        "route add default via 10.77.1.1 dev eth0 metric 5", "route add 10.90.0.0/16 via 10.77.2.1 dev eth1",
        "route add 169.254.1.1 dev eth0 scope link", "route add 10.91.0.0/16 dev eth0 scope link src 10.77.1.3",
        "route add 10.92.0.0/16 via 192.168.9.9 dev eth1 onlink", "route add 10.93.0.0/16 dev eth1 mtu lock 1300",
        "-6 route add default via fd77:1::1 dev eth0 metric 7", "-6 route add fd90::/32 via fe80::1 dev eth1",
        "neigh add 10.77.1.1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent",
        "neigh add fd77:2::9 lladdr 02:00:00:00:00:09 dev eth1 nud permanent",
    ):  # fmt: skip
        inside.ip(words)
    inside.execute("sysctl", "-q", "net.ipv6.conf.eth1.accept_ra=0")
    # The kernel assigns link-local addresses shortly after the links are up.
    wait_until(lambda: len(inside.shown("-6 addr show scope link -tentative")) == 3)
    bundle = bundle_in(tmp_path / "bundle", SHOW, inside.path)
    with open(f"{bundle}/config.json") as file:
        spec = json.load(file)
    drop_cgroups(spec, namespace=True)
    spec["linux"]["sysctl"] = {"net.ipv4.ip_unprivileged_port_start": "80"}
    (tmp_path / "resolv.conf").write_text("nameserver 10.77.1.1\n")
    mount = {"destination": "/etc/resolv.conf", "type": "bind", "source": f"{tmp_path}/resolv.conf"}
    spec["mounts"].append(mount | {"options": ["rbind", "ro"]})
    write(bundle, spec)
    result = runtime("run", "--bundle", bundle, "c1")
    assert result.code == 0, result.errors
    runc = run("runc", "--root", f"{tmp_path}/runc", "run", "--bundle", bundle, f"c{os.getpid()}")
    ours, theirs = (sorted(line.rstrip() for line in text.splitlines()) for text in (result.output, runc))
    assert ours == theirs
    assert "eth0 1400 0a:00:00:00:00:02 0x1003" in ours
    flags = {line.split()[0]: line.split()[-1] for line in ours if " 0x" in line}
    assert (flags["eth1"], flags["eth2"]) == ("0x9303", "0x83"), "promiscuous and all-multicast; without ARP"
    assert len(ours) > 30
    assert is_clean(inside, "eth0", "eth1", "eth2")


@contextmanager
def sending(outside: Namespace, **frames: bytes) -> Iterator[None]:
    """Send to the two multicast groups of tests/vm/receives.c on the interface "other", and each frame on the interface
    of its name."""
    done = threading.Event()
    sockets: list[socket.socket] = []

    def make() -> list[Callable[[], object]]:
        udp = [socket.socket(family, socket.SOCK_DGRAM) for family in (socket.AF_INET, socket.AF_INET6)]
        sockets.extend(udp)
        udp[0].setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("10.77.3.1"))
        udp[1].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex("other"))
        senders: list[Callable[[], object]] = [
            lambda: udp[0].sendto(b"group4", ("239.1.2.3", 5004)), lambda: udp[1].sendto(b"x", ("ff15::1:2:3", 5006))
        ]  # fmt: skip
        for name, frame in frames.items():
            raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            raw.bind((name, 0))
            sockets.append(raw)
            senders.append(partial(raw.send, frame))
        return senders

    sends = network_namespace.within(outside.fd, make)

    def send() -> None:
        while not done.wait(0.05):
            for each in sends:
                each()

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        for each in sockets:
            each.close()


def frame(receiver: str) -> bytes:
    """An Ethernet frame to a hardware address, with a protocol that no program receives."""
    return bytes.fromhex(receiver) + b"\x0a\0\0\0\0\x99\x88\xb5" + bytes(64)


def test_bridge_and_macvlan_receive_the_same_frames_as_with_runc(
    runtime: Runtime, tmp_path: Path, inside: Namespace, outside: Namespace
) -> None:
    """A bridge over two ports in the same namespace, and a macvlan, which drops frames for unused addresses."""
    for number in (1, 2):
        run(
            "ip", "link", "add", f"port{number}", "netns", inside.name,
            "type", "veth", "peer", f"peer{number}", "netns", outside.name,
        )  # fmt: skip
    for words in (
        "addr add 10.77.1.1/24 dev peer1", "link set peer1 up", "link set peer2 up",
        "link add under type veth peer other",
        "link add mv0 link under type macvlan mode bridge", f"link set mv0 netns {inside.name}", "link set under up",
        "link set other up", "addr add 10.77.3.1/24 dev other", "addr add fd77:3::1/64 dev other nodad",
    ):  # fmt: skip
        outside.ip(words)
    for words in (
        "link add br0 type bridge", "addr add 10.77.1.2/24 dev br0", "link set port1 master br0 up",
        "link set port2 master br0 up", "link set br0 up", "addr add 10.77.3.2/24 dev mv0",
        "addr add fd77:3::2/64 dev mv0 nodad", "link set mv0 up",
    ):  # fmt: skip
        inside.ip(words)
    kinds = [("frames", "mv0", 1), ("group4", "mv0", 10), ("group6", "mv0", 10), ("allmulti", "mv0", 10)]
    kinds += [("frames", "br0", 1), ("promisc", "br0", 10)]
    script = "".join(f"{BOX} ping -c 1 10.77.{net}.1 | grep -o '1 packets received';" for net in (1, 3))
    script += ";".join(f"/bin/receives {kind} {name} {seconds}" for kind, name, seconds in kinds)
    bundle = bundle_in(tmp_path / "bundle", f"echo $(ls /sys/class/net); {script}", inside.path)
    receives = compiled_file(f"{os.path.dirname(__file__)}/receives.c")
    shutil.copy(receives, f"{bundle}/rootfs/bin/receives")
    with open(f"{bundle}/config.json") as file:
        spec = json.load(file)
    drop_cgroups(spec)
    write(bundle, spec)
    # To a multicast group, and to an unknown address, which a bridge forwards to all ports.
    stranger = frame("0a0000000077")
    for last in range(0x99, 0x9F):
        group = frame(f"01005e7788{last:02x}")
        with sending(outside, other=group, peer2=stranger):
            if "nothing" in inside.execute(receives, "frames", "mv0", "1"):
                break
        # A macvlan filters groups by a hash of eight bits (Linux drivers/net/macvlan.c, mc_hash()): the group's hash is
        # that of a group which the interface has joined.
    with sending(outside, other=group, peer2=stranger):
        result = runtime("run", "--bundle", bundle, "c1")
        assert (result.code, result.errors) == (0, "")
        runc = run("runc", "--root", f"{tmp_path}/runc", "run", "--bundle", bundle, f"c{os.getpid()}")
    names, *ours = result.output.splitlines()
    all_names, *theirs = runc.splitlines()
    assert names == "br0 lo mv0"
    assert set(all_names.split()) == {*names.split(), "port1", "port2"}
    assert ours == theirs
    assert [line.split(": ")[1] for line in theirs[2:]] == ["nothing", *["received"] * 3, "nothing", "received"]
    assert inside.links() == ["br0", "mv0", "port1", "port2"]
    assert inside.traffic_control() == ""


def answer(outside: Namespace, family: int, address: str, text: bytes) -> tuple[int, list[bytes], threading.Thread]:
    """A server outside that sends a text to its first client: its port, the received data, its thread."""
    server = network_namespace.within(outside.fd, lambda: socket.socket(family, socket.SOCK_STREAM))
    server.bind((address, 0))
    server.listen()
    server.settimeout(patience(20))
    heard: list[bytes] = []

    def send(connection: socket.socket) -> None:
        connection.sendall(text)
        connection.shutdown(socket.SHUT_WR)

    def serve() -> None:
        with server:
            connection, _ = server.accept()
        with connection:
            # While receiving: if the peer sends before it reads, both sides would wait for each other.
            sending = threading.Thread(target=send, args=[connection])
            sending.start()
            heard.append(b"".join(iter(lambda: connection.recv(4096), b"")))
            sending.join()

    thread = threading.Thread(target=serve)
    thread.start()
    port: int = server.getsockname()[1]
    return port, heard, thread


@pytest.mark.parametrize(
    ("family", "ours", "theirs"),
    [(socket.AF_INET, "10.77.1.1", "10.77.1.2"), (socket.AF_INET6, "fd77:1::1", "fd77:1::2")],
)
def test_packets_are_sent_and_received(
    runtime: Runtime, tmp_path: Path, inside: Namespace, outside: Namespace, family: int, ours: str, theirs: str
) -> None:
    cable(inside, outside, "eth0", net=1)
    # More than a TCP window, in both directions, so that checksums and segmentation are offloaded.
    much = os.urandom(1 << 20)
    port, heard, thread = answer(outside, family, ours, much)
    script = (
        f"{BOX} ping -c 3 {ours} >/data/ping; {BOX} nc {ours} {port} </data/sent >/data/got;"
        f"{BOX} httpd -p 8080 -h /data; echo >/data/ready; sleep 1000"
    )
    bundle = bundle_in(tmp_path / "bundle", script, inside.path)
    data = Path(bundle, "rootfs", "data")
    (data / "sent").write_bytes(much[::-1])
    runtime.run_detached(bundle, "c1")
    wait_until(lambda: (data / "ready").exists())
    thread.join()
    assert "3 packets received" in (data / "ping").read_text()
    assert (data / "got").read_bytes() == much
    assert heard == [much[::-1]]
    with network_namespace.within(
        outside.fd, lambda: socket.create_connection((theirs, 8080), timeout=patience(20))
    ) as connection:
        connection.sendall(b"GET /sent HTTP/1.0\r\n\r\n")
        page = b"".join(iter(lambda: connection.recv(65536), b""))
    assert page.endswith(much[::-1])
    assert "3 packets received" in outside.execute(busybox(), "ping", "-c", "3", theirs)
    assert "lladdr" in json.dumps(outside.shown(f"neigh show {theirs}")), "the VM answers ARP requests for its address"


def test_several_interfaces_have_their_own_cables(
    runtime: Runtime, tmp_path: Path, inside: Namespace, outside: Namespace
) -> None:
    # Not in the order of their names, and not all with names that the kernel chooses.
    names = ["eth2", "eth0", "net-of-15-bytes", "eth1", "a.b"]
    for net, name in enumerate(names, 1):
        cable(inside, outside, name, net=net)
    pings = ";".join(f"{BOX} ping -c 1 10.77.{net}.1 | grep -c '1 packets rec'" for net in range(1, 6))
    script = f"{pings}; cd /sys/class/net; for i in *; do echo $i $(cat $i/address); done"
    result = runtime("run", "--bundle", bundle_in(tmp_path / "bundle", script, inside.path), "c1")
    assert result.code == 0, result.errors
    lines = result.output.splitlines()
    assert lines[:5] == ["1"] * 5
    expected = {f"{link['ifname']} {link['address']}" for link in inside.shown("link show")}
    assert set(lines[5:]) == expected


def test_two_sandboxes_have_their_own_addresses(
    runtime: Runtime, tmp_path: Path, new_namespace: Callable[[], Namespace], inside: Namespace, outside: Namespace
) -> None:
    """Both are restored from one template and are on one bridge. The hardware addresses are those of the interfaces."""
    outside.ip("link add br0 type bridge")
    outside.ip("link set br0 up")
    second = new_namespace()
    for number, namespace in ((2, inside), (3, second)):
        peer = f"peer{number}"
        run("ip", "link", "add", "eth0", "netns", namespace.name, "type", "veth", "peer", peer, "netns", outside.name)
        namespace.ip(f"addr add 10.77.1.{number}/24 dev eth0")
        namespace.ip("link set eth0 up")
        outside.ip(f"link set {peer} master br0 up")
    runtime.run_detached(bundle_in(tmp_path / "one", "sleep 1000", inside.path), "c1")
    script = f"{BOX} ping -c 3 10.77.1.2; {BOX} ip neigh; cat /sys/class/net/eth0/address"
    result = runtime("run", "--bundle", bundle_in(tmp_path / "two", script, second.path), "c2")
    assert "3 packets received" in result.output, result
    macs = [namespace.shown("link show eth0")[0]["address"] for namespace in (inside, second)]
    assert f"10.77.1.2 dev eth0 lladdr {macs[0]}" in result.output
    assert result.output.splitlines()[-1] == macs[1] != macs[0]
    # A network namespace belongs to one VM.
    bundle = bundle_in(tmp_path / "three", "true", inside.path)
    assert fails(runtime, "create", "--bundle", bundle, "c3").startswith(
        "interface eth0 of the network namespace belongs to another sandbox"
    )
    again = runtime("run", "--bundle", bundle_in(tmp_path / "four", script, second.path), "c4")
    assert "3 packets received" in again.output, again
