"""The network of a container: what runc's has in the same namespace, packets both ways, and nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hawse.sandbox import namespaces
from hawse.sandbox.state import start_time
from tests.support.bundles import busybox, drop_cgroups, make_bundle, write
from tests.support.netns import Namespace, cable, run
from tests.support.patience import patience, wait_until
from tests.support.processes import qemu_of
from tests.support.programs import compiled, compiled_file
from tests.support.refusals import fails
from tests.support.runtime import Runtime

pytestmark = pytest.mark.vm

BOX = "/bin/busybox"
#: What a program can see of its network, but for counters, times and the queues of the device.
SHOW = f"""
cd /sys/class/net; for i in *; do echo "$i" "$(cat $i/mtu)" "$(cat $i/address)" "$(cat $i/flags)"; done
{BOX} ip -o link | {BOX} sed -n 's/.*\\(lo\\|eth[0-9]\\)[@:].*<\\(.*\\)>.*/\\1 \\2/p'
{BOX} ip addr | grep -o 'inet.*' | {BOX} sed 's/ flags.*//'
{BOX} ip route; {BOX} ip -6 route; {BOX} ip neigh | grep PERMANENT
cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv6/conf/eth*/accept_ra /etc/resolv.conf
"""


@pytest.fixture
def make() -> Iterator[Callable[[], Namespace]]:
    """A maker of namespaces, which are gone afterwards."""
    with ExitStack() as undo:
        yield lambda: undo.enter_context(Namespace())


@pytest.fixture
def inside(make: Callable[[], Namespace]) -> Namespace:
    return make()


@pytest.fixture
def outside(make: Callable[[], Namespace]) -> Namespace:
    return make()


def bundle_in(path: Path, script: str, network: str | None, **process: Any) -> str:
    """A bundle whose shell runs a script in the namespace at a path, "" for a new one, None for the host's."""
    rights = ["CAP_NET_RAW", "CAP_NET_BIND_SERVICE", "CAP_KILL"]
    process = {"capabilities": dict.fromkeys(("bounding", "effective", "permitted"), rights)} | process
    spec = make_bundle(str(path), ["/bin/sh", "-c", script], **process)
    others = [namespace for namespace in spec["linux"]["namespaces"] if namespace["type"] != "network"]
    if network is not None:
        others.append({"type": "network"} | ({"path": network} if network else {}))
    spec["linux"]["namespaces"] = others
    write(str(path), spec)
    return str(path)


def is_clean(inside: Namespace, *links: str) -> bool:
    """Nothing of a sandbox is left in its namespace. QEMU's taps go with it, a moment after its monitor was killed."""
    return inside.links() == sorted(links) and inside.traffic_control() == ""


def test_a_program_sees_what_it_sees_with_runc(
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
    # The addresses of the links come a moment after the links.
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
    """Send to the two groups of tests/vm/receives.c by way of the interface "other", and frames by way of theirs."""
    done = threading.Event()
    sockets: list[socket.socket] = []

    def make() -> list[Callable[[], object]]:
        udp = [socket.socket(family, socket.SOCK_DGRAM) for family in (socket.AF_INET, socket.AF_INET6)]
        sockets.extend(udp)
        udp[0].setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("10.77.3.1"))
        udp[1].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex("other"))
        made: list[Callable[[], object]] = [
            lambda: udp[0].sendto(b"group4", ("239.1.2.3", 5004)), lambda: udp[1].sendto(b"x", ("ff15::1:2:3", 5006))
        ]  # fmt: skip
        for name, frame in frames.items():
            raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            raw.bind((name, 0))
            sockets.append(raw)
            made.append(partial(raw.send, frame))
        return made

    sends = namespaces.within(outside.fd, make)

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


def test_bridge_and_macvlan_receive_what_they_receive_with_runc(
    runtime: Runtime, tmp_path: Path, inside: Namespace, outside: Namespace
) -> None:
    """A bridge over two ports in the same namespace, and a macvlan, which drops what nobody has asked for."""
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
    shutil.copy(compiled_file(f"{os.path.dirname(__file__)}/receives.c"), f"{bundle}/rootfs/bin/receives")
    with open(f"{bundle}/config.json") as file:
        spec = json.load(file)
    drop_cgroups(spec)
    write(bundle, spec)
    # To a group, and to an address that no port is known for, which a bridge sends everywhere.
    group, stranger = (bytes.fromhex(to) + b"\x0a\0\0\0\0\x99\x88\xb5" + bytes(64) for to in (
        "01005e778899", "0a0000000077"
    ))  # fmt: skip
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
    """A server outside that sends a text to who comes: its port, what it is sent, its thread."""
    server = namespaces.within(outside.fd, lambda: socket.socket(family, socket.SOCK_STREAM))
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
            # At once with what is received: a peer that sends before it reads would wait for us, and we for it.
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
def test_packets_go_both_ways(
    runtime: Runtime, tmp_path: Path, inside: Namespace, outside: Namespace, family: int, ours: str, theirs: str
) -> None:
    cable(inside, outside, "eth0", net=1)
    # More than a window, in both directions, so that what the cards may leave to each other (checksums, segments) is.
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
    with namespaces.within(
        outside.fd, lambda: socket.create_connection((theirs, 8080), timeout=patience(20))
    ) as connection:
        connection.sendall(b"GET /sent HTTP/1.0\r\n\r\n")
        page = b"".join(iter(lambda: connection.recv(65536), b""))
    assert page.endswith(much[::-1])
    assert "3 packets received" in outside.execute(busybox(), "ping", "-c", "3", theirs)
    assert "lladdr" in json.dumps(outside.shown(f"neigh show {theirs}")), (
        "the address is the virtual machine's to defend"
    )


def test_names_are_resolved(runtime: Runtime, tmp_path: Path, inside: Namespace, outside: Namespace) -> None:
    cable(inside, outside, "eth0", net=1)
    server = namespaces.within(outside.fd, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    server.bind(("10.77.1.1", 53))

    server.settimeout(0.1)
    done = threading.Event()

    def serve() -> None:
        while not done.is_set():
            try:
                query, peer = server.recvfrom(512)
            except TimeoutError:
                continue
            # The question again, and for an A record one answer that points to its name (RFC 1035, section 4.1).
            question = query[12 : query.index(b"\0", 12) + 5]
            is_a = question[-4:-2] == b"\0\1"
            record = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + bytes([10, 1, 2, 3]) if is_a else b""
            head = query[:2] + b"\x81\x80" + bytes([0, 1, 0, int(is_a), 0, 0, 0, 0])
            server.sendto(head + question + record, peer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        bundle = bundle_in(tmp_path / "bundle", f"{BOX} nslookup name.example.", inside.path)
        Path(bundle, "rootfs", "etc", "resolv.conf").write_text("nameserver 10.77.1.1\n")
        result = runtime("run", "--bundle", bundle, "c1")
    finally:
        done.set()
        thread.join()
        server.close()
    assert "10.1.2.3" in result.output, result


def test_several_interfaces_each_on_its_own_cable(
    runtime: Runtime, tmp_path: Path, inside: Namespace, outside: Namespace
) -> None:
    # Not in the order of their names, nor with the kernel's.
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


def test_interfaces_that_come_between_create_and_start(
    runtime: Runtime, tmp_path: Path, inside: Namespace, outside: Namespace
) -> None:
    cable(inside, outside, "eth0", net=1)
    script = "".join(f"{BOX} ping -c 1 10.77.{net}.1 >>/data/out;" for net in (1, 2, 3)) + "echo >/data/ready"
    bundle = bundle_in(tmp_path / "bundle", script, inside.path)
    create(runtime, bundle)
    for net in (2, 3):
        cable(inside, outside, f"eth{net}", net=net)
    assert runtime("start", "c1").code == 0
    data = Path(bundle, "rootfs", "data")
    wait_until(lambda: (data / "ready").exists())
    assert (data / "out").read_text().count("1 packets received") == 3
    assert runtime("delete", "--force", "c1").code == 0
    assert is_clean(inside, "eth0", "eth2", "eth3")


def create(runtime: Runtime, bundle: str) -> int:
    """`create`; the pid that the engine is told."""
    null = subprocess.DEVNULL
    words = ["create", "--bundle", bundle, "--pid-file", f"{bundle}/pid", "c1"]
    assert runtime.start(*words, stdin=null, stdout=null, stderr=null).wait(patience(30)) == 0
    return int(Path(bundle, "pid").read_text())


@pytest.mark.parametrize("end", ["its program", "SIGKILL"])
def test_an_engine_that_brings_the_network_to_the_process(
    runtime: Runtime, tmp_path: Path, outside: Namespace, end: str
) -> None:
    """As Docker does: it finds a new namespace at the pid, and keeps it by a mount of its own."""
    stay = "" if end == "its program" else "sleep 1000"
    bundle = bundle_in(tmp_path / "bundle", f"{BOX} ping -c 1 10.77.1.1 >/data/out; echo >/data/ready; {stay}", "")
    pid = create(runtime, bundle)
    assert os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")
    inside = Namespace()
    run("ip", "netns", "attach", inside.name, str(pid))
    try:
        cable(inside, outside, "eth0", net=1)
        assert runtime("start", "c1").code == 0
        data = Path(bundle, "rootfs", "data")
        wait_until(lambda: (data / "ready").exists())
        assert "1 packets received" in (data / "out").read_text()
        if stay:
            os.kill(runtime.monitor("c1"), signal.SIGKILL)
        # Without the process there is no path to its namespace but the engine's own.
        wait_until(lambda: runtime.state("c1")["status"] == "stopped" and not is_alive(pid))
        assert runtime("delete", "--force", "c1").code == 0
        wait_until(lambda: inside.links() == ["eth0"])
        assert is_clean(inside, "eth0")
    finally:
        run("ip", "netns", "del", inside.name)


def is_alive(pid: int) -> bool:
    return start_time(pid) > 0


def test_without_interfaces_there_is_lo(runtime: Runtime, tmp_path: Path, inside: Namespace) -> None:
    script = f"ls /sys/class/net; {BOX} ip addr show lo; {BOX} ping -c 1 127.0.0.1; {BOX} ping -c 1 ::1"
    for number, path in enumerate(("", inside.path)):
        result = runtime("run", "--bundle", bundle_in(tmp_path / f"bundle{number}", script, path), "c1")
        assert result.code == 0, result
        assert result.output.splitlines()[0] == "lo"
        assert "LOOPBACK,UP" in result.output
        assert result.output.count("1 packets received") == 2
        assert not os.path.exists(f"{runtime.root}/c1")


def test_an_interface_that_is_down_stays_where_it_is(
    runtime: Runtime, tmp_path: Path, inside: Namespace, outside: Namespace
) -> None:
    cable(inside, outside, "eth0", net=1)
    inside.ip("link set eth0 down")
    result = runtime("run", "--bundle", bundle_in(tmp_path / "bundle", "ls /sys/class/net", inside.path), "c1")
    assert (result.code, result.output) == (0, "lo\n")


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (None, "{bundle}/config.json: linux.namespaces: none of type network: the container would have the host's"),
        ("/proc/self/ns/net", "linux.namespaces[type=network].path: /proc/self/ns/net: the host's own network"),
        ("/run/netns/hawse-none", "linux.namespaces[type=network].path: /run/netns/hawse-none: no such file"),
        ("/etc/hostname", "linux.namespaces[type=network].path: /etc/hostname: not a network namespace"),
    ],
)
def test_a_network_that_a_machine_cannot_have(
    runtime: Runtime, tmp_path: Path, network: str | None, words: str
) -> None:
    bundle = bundle_in(tmp_path / "bundle", "true", network)
    assert fails(runtime, "create", "--bundle", bundle, "c1").startswith(words.format(bundle=bundle))


def test_a_setting_that_the_guest_does_not_have(runtime: Runtime, tmp_path: Path) -> None:
    bundle = bundle_in(tmp_path / "bundle", "true", "")
    with open(f"{bundle}/config.json") as file:
        spec = json.load(file)
    spec["linux"]["sysctl"] = {"net.none": "1"}
    write(bundle, spec)
    said = fails(runtime, "create", "--bundle", bundle, "c1")
    assert said.startswith("linux.sysctl: net.none: the guest cannot set it: No such file or directory")


def test_a_create_that_fails_leaves_the_interface_alone(
    runtime: Runtime, tmp_path: Path, inside: Namespace, outside: Namespace
) -> None:
    cable(inside, outside, "eth0", net=1)
    bundle = bundle_in(tmp_path / "bundle", "true", inside.path, args=["/bin/nothing"])
    fails(runtime, "create", "--bundle", bundle, "c1", code=127)
    assert is_clean(inside, "eth0")


@pytest.mark.parametrize("victim", ["nobody", "monitor", "QEMU"])
def test_nothing_is_left_whoever_is_killed(
    runtime: Runtime, tmp_path: Path, inside: Namespace, outside: Namespace, victim: str
) -> None:
    cable(inside, outside, "eth0", net=1)
    runtime.run_detached(bundle_in(tmp_path / "bundle", "sleep 1000", inside.path), "c1")
    assert not is_clean(inside, "eth0")
    with open(f"{runtime.root}/c1/state.json") as file:
        state = json.load(file)
    [shown] = state["network"]
    assert shown == {"name": "eth0", "mac": inside.shown("link show eth0")[0]["address"], "guest": "0000:06:00.0"}
    if victim != "nobody":
        os.kill(state["monitorPid"] if victim == "monitor" else qemu_of(state["monitorPid"]), signal.SIGKILL)
        wait_until(lambda: runtime.state("c1")["status"] == "stopped")
    assert runtime("delete", "--force", "c1").code == 0
    wait_until(lambda: inside.links() == ["eth0"])
    assert is_clean(inside, "eth0")
    # And the interface is the next sandbox's.
    script = f"{BOX} ping -c 1 10.77.1.1"
    result = runtime("run", "--bundle", bundle_in(tmp_path / "next", script, inside.path), "c1")
    assert "1 packets received" in result.output, result
    assert is_clean(inside, "eth0")


def test_two_sandboxes_at_once(
    runtime: Runtime, tmp_path: Path, make: Callable[[], Namespace], inside: Namespace, outside: Namespace
) -> None:
    """Clones of one template, on one bridge: each has the hardware address of its own interface."""
    outside.ip("link add br0 type bridge")
    outside.ip("link set br0 up")
    second = make()
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
    # One namespace is one machine's.
    bundle = bundle_in(tmp_path / "three", "true", inside.path)
    assert fails(runtime, "create", "--bundle", bundle, "c3").startswith(
        "interface eth0 of the network namespace is another sandbox's"
    )
    again = runtime("run", "--bundle", bundle_in(tmp_path / "four", script, second.path), "c4")
    assert "3 packets received" in again.output, again


def test_a_process_in_the_host_is_in_the_containers_namespace(
    runtime: Runtime, tmp_path: Path, inside: Namespace
) -> None:
    """Engines look there; other containers of a pod are given that path."""
    pid = runtime.run_detached(bundle_in(tmp_path / "bundle", "sleep 1000", inside.path), "c1")
    assert os.stat(f"/proc/{pid}/ns/net").st_ino == os.stat(inside.path).st_ino


def serve_names(inside: Namespace, address: str, answer: str) -> ExitStack:
    """A name server on the namespace's own loopback, as Docker has one: every name has the one address."""
    server = namespaces.within(inside.fd, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))

    def answered(query: bytes) -> bytes:
        end = query.index(b"\0", 12) + 5
        record = b"\xc0\x0c" + query[end - 4 : end] + (60).to_bytes(4, "big") + b"\0\x04" + socket.inet_aton(answer)
        records = 1 if query[end - 4 : end] == b"\0\x01\0\x01" else 0  # there is no other type than A
        return query[:2] + b"\x81\x80\0\x01" + records.to_bytes(2, "big") + bytes(4) + query[12:end] + record * records

    def datagrams() -> None:
        while True:
            query, peer = server.recvfrom(65535)
            if not query:
                return
            server.sendto(answered(query), peer)

    undo = ExitStack()
    undo.enter_context(server)
    server.bind((address, 53))
    thread = threading.Thread(target=datagrams)
    thread.start()

    def end() -> None:
        with namespaces.within(inside.fd, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as last:
            last.sendto(b"", (address, 53))
        thread.join()

    undo.callback(end)
    return undo


def bundle_of_docker(tmp_path: Path, script: str, network: str) -> str:
    """As :func:`bundle_in`, with the name server of Docker's networks."""
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.11\noptions ndots:0\n")
    bundle = bundle_in(tmp_path / "bundle", script, network)
    with open(f"{bundle}/config.json") as file:
        spec = json.load(file)
    mount = {"destination": "/etc/resolv.conf", "type": "bind", "source": f"{tmp_path}/resolv.conf"}
    spec["mounts"].append(mount | {"options": ["rbind", "ro"]})
    write(bundle, spec)
    return bundle


def test_names_are_asked_of_a_server_on_the_namespaces_loopback(
    runtime: Runtime, tmp_path: Path, inside: Namespace
) -> None:
    """Docker's server for its networks is at 127.0.0.11, in the namespace that the engine made."""
    bundle = bundle_of_docker(tmp_path, f"{BOX} nslookup -type=a anything; {BOX} netstat -lnu", inside.path)
    with serve_names(inside, "127.0.0.11", "192.0.2.7"):
        result = runtime("run", "--bundle", bundle, "c1")
    assert result.code == 0, result
    assert "192.0.2.7" in result.output
    assert "127.0.0.11:53" in result.output


def test_what_is_no_query_ends_nothing(runtime: Runtime, tmp_path: Path, inside: Namespace) -> None:
    """Any program can send it, as `echo x | nc -u 127.0.0.11 53` does: the sandbox is none of its business."""
    script = (
        f"/bin/send && printf '\\0\\0' | {BOX} nc 127.0.0.11 53 && printf '\\0\\1x' | {BOX} nc 127.0.0.11 53 &&"
        f"{BOX} nslookup -type=a anything"
    )
    bundle = bundle_of_docker(tmp_path, script, inside.path)
    source = """
        #include <arpa/inet.h>
        int main(void) {
            struct sockaddr_in to = {AF_INET, htons(53), {inet_addr("127.0.0.11")}, {0}};
            return sendto(socket(AF_INET, SOCK_DGRAM, 0), "x\\n", 2, 0, (void *)&to, sizeof to) != 2;
        }
    """
    shutil.copy(compiled(source), f"{bundle}/rootfs/bin/send")
    with serve_names(inside, "127.0.0.11", "192.0.2.7"):
        result = runtime("run", "--bundle", bundle, "c1")
    assert (result.code, result.errors) == (0, "")
    assert "192.0.2.7" in result.output


def test_a_containers_own_name_server_is_left_alone(runtime: Runtime, tmp_path: Path, inside: Namespace) -> None:
    """Nothing of ours listens in the guest where the container's resolv.conf names no loopback."""
    result = runtime("run", "--bundle", bundle_in(tmp_path / "bundle", f"{BOX} netstat -lnu", inside.path), "c1")
    assert result.code == 0, result
    assert ":53 " not in result.output
