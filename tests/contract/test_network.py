"""Network namespaces and traffic control of the real kernel: changes of interfaces, and their undoing.

This includes the program :mod:`hawse.tap_helper.main`.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hawse.errors import ConfigError, HostError, StateError
from hawse.host import network_namespace, redirects
from hawse.linux.processes import open_process
from hawse.monitor.network.host_network import Joining, Network
from tests.support.host_processes import reused
from tests.support.netns import Namespace, cable
from tests.support.patience import patience, wait_until


@pytest.fixture
def network(inside: Namespace, outside: Namespace, tmp_path: Path) -> Iterator[Network]:
    cable(inside, outside, "eth0", net=1)
    network = Network(inside.path, str(tmp_path))
    yield network
    network.close()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/run/netns/hawse-none", "no such file or directory"),
        ("/etc/hostname", "not a network namespace"),
        ("/proc/self/ns/mnt", "not a network namespace"),
        ("/dev/null", "not a network namespace"),
        ("/proc/self/ns/net", "the host's network, which a virtual machine cannot share"),
    ],
)
def test_path_that_is_not_a_network_namespace_is_refused(path: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        network_namespace.open_path(path)
    assert caught.value.message == f"linux.namespaces[type=network].path: {path}: {words}"
    assert caught.value.hint


def test_program_that_cannot_be_started_is_an_error_and_leaves_no_socket(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    closed = os.open("/dev/null", os.O_RDONLY)
    os.close(closed)
    with pytest.raises(HostError, match="cannot start the program that joins the network interfaces: Bad file"):
        Joining(closed + 100, [1], str(tmp_path / "network"))
    assert len(os.listdir("/proc/self/fd")) == before


def test_reading_a_namespace_does_not_change_that_of_the_process(inside: Namespace, outside: Namespace) -> None:
    before = os.readlink("/proc/self/ns/net")
    cable(inside, outside, "eth0", net=1)
    cable(inside, outside, "eth1", net=2)
    inside.ip("link set eth1 down")
    inside.ip("tuntap add mode tap name hawse2")
    inside.ip("link set hawse2 up")
    assert list(network_namespace.within(inside.fd, network_namespace.interfaces).values()) == ["eth0"]
    assert os.readlink("/proc/self/ns/net") == os.readlink("/proc/thread-self/ns/net") == before
    assert inside.cookie() != outside.cookie()


def test_error_in_a_namespace_is_raised_to_the_caller() -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    with pytest.raises(HostError, match="cannot enter the network namespace: Invalid argument"):
        network_namespace.within(fd, lambda: None)
    os.close(fd)


def joining(network: Network) -> Joining:
    network.look()
    taps = network.take_joining()
    assert taps is not None
    return taps


def test_interface_is_connected_with_a_tap_and_released(
    network: Network, inside: Namespace, outside: Namespace
) -> None:
    inside.ip("route add default via 10.77.1.1 metric 5")
    [(interface, tap)], warnings = joining(network).wait()
    assert warnings == []
    assert interface["name"] == "eth0"
    assert interface["mtu"] == 1500
    assert interface["mac"] == inside.shown("link show eth0")[0]["address"]
    assert [a["local"] for a in interface["addresses"]][:2] == ["10.77.1.2", "fd77:1::2"]
    assert [(r["to"], r["gateway"], r["metric"]) for r in interface["routes"]] == [("", "10.77.1.1", 5)]
    assert interface["settings"].keys() == {"ipv6/disable_ipv6", "ipv6/accept_ra", "ipv6/autoconf"}
    assert inside.links() == ["eth0", f"hawse{interface['index']}"]
    # Frames from outside arrive at the tap, after the virtio header of ten bytes.
    with network_namespace.within(outside.fd, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)) as sender:
        sender.bind(("eth0", 0))
        frame = b"\xff" * 12 + b"\x88\xb5" + b"hawse" * 20
        sender.send(frame)
        os.set_blocking(tap, True)
        while os.read(tap, 2048)[10:] != frame:
            pass
        # The other direction.
        with network_namespace.within(outside.fd, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)) as receiver:
            receiver.bind(("eth0", 3))
            receiver.settimeout(patience(3))
            os.write(tap, bytes(10) + frame[::-1])
            while receiver.recv(2048) != frame[::-1]:
                pass
    network.look()
    assert network.take_joining() is None, "it is known"
    os.close(tap)
    assert inside.links() == ["eth0"]
    assert "mirred" in inside.traffic_control()
    network.close()
    assert inside.traffic_control() == ""


def test_interface_belongs_to_one_sandbox(network: Network, inside: Namespace, tmp_path: Path) -> None:
    [(_, tap)], _ = joining(network).wait()
    before = inside.traffic_control()
    (tmp_path / "second").mkdir()
    second = Network(inside.path, str(tmp_path / "second"))
    with pytest.raises(
        HostError, match=r"interface eth0 of the network namespace belongs to another sandbox: its tap hawse\d+ exists"
    ):
        joining(second).wait()
    second.close()
    assert inside.traffic_control() == before
    os.close(tap)


def test_joining_without_a_monitor_is_undone(network: Network, inside: Namespace) -> None:
    """For example if the monitor is killed meanwhile."""
    joining(network).end()
    assert inside.links() == ["eth0"]
    network.close()
    assert inside.traffic_control() == ""


@pytest.mark.usefixtures("network")
def test_missing_state_directory_stops_the_joining(inside: Namespace, tmp_path: Path) -> None:
    """For example if the sandbox of a dead monitor is deleted while the program still runs."""
    gone = Joining(inside.fd, [inside.shown("link show eth0")[0]["ifindex"]], str(tmp_path / "gone" / "network"))
    with pytest.raises(HostError, match="ended without an answer"):
        gone.wait()
    assert inside.links() == ["eth0"]
    assert inside.traffic_control() == ""


def test_remains_of_a_dead_sandbox_are_cleared(network: Network, inside: Namespace) -> None:
    inside.tc("qdisc add dev eth0 ingress")
    inside.tc(
        "filter add dev eth0 parent ffff: pref 18519 protocol all u32 match u8 0 0 action mirred egress redirect dev lo"
    )
    [(_, tap)], _ = joining(network).wait()
    shown = inside.tc("filter show dev eth0 ingress")
    assert "to device hawse" in shown and "to device lo" not in shown
    os.close(tap)
    network.close()
    assert inside.traffic_control() == ""


@pytest.mark.parametrize("kind", ["ingress", "clsact"])
def test_filters_of_other_programs_stay(network: Network, inside: Namespace, kind: str) -> None:
    inside.tc(f"qdisc add dev eth0 {kind}")
    inside.tc("filter add dev eth0 ingress pref 7 protocol ip u32 match u32 0 0 action mirred egress mirror dev lo")
    [(_, tap)], _ = joining(network).wait()
    both = inside.tc("filter show dev eth0 ingress")
    assert "Mirror to device lo" in both and "Redirect to device hawse" in both
    os.close(tap)
    network.close()
    left = inside.tc("filter show dev eth0 ingress")
    assert "Mirror to device lo" in left and "Redirect" not in left
    assert kind in inside.tc("qdisc show dev eth0")


def test_record_of_another_namespace_is_ignored(
    network: Network, inside: Namespace, outside: Namespace, tmp_path: Path
) -> None:
    [(interface, tap)], _ = joining(network).wait()
    os.close(tap)
    other = tmp_path / "other"
    other.mkdir()
    redirects.note(f"{other}/network", {"path": inside.path, "inode": inside.inode(), "cookie": outside.cookie()})
    redirects.note(f"{other}/network", {"index": interface["index"], "name": "eth0", "qdisc": True})
    before = inside.traffic_control()
    redirects.release(str(other))
    assert inside.traffic_control() == before != ""
    assert not os.path.exists(f"{other}/network")


def test_namespace_of_an_ended_process_is_found_by_its_mount(
    network: Network, inside: Namespace, tmp_path: Path
) -> None:
    """For example if an engine has mounted the namespace of a process that was killed together with the monitor."""
    [(interface, tap)], _ = joining(network).wait()
    os.close(tap)
    other = tmp_path / "other"
    other.mkdir()
    where = {"path": "/proc/0/ns/net", "inode": inside.inode(), "cookie": inside.cookie()}
    redirects.note(f"{other}/network", where)
    redirects.note(f"{other}/network", {"index": interface["index"], "name": "eth0", "qdisc": True})
    redirects.release(str(other))
    assert inside.traffic_control() == ""


def test_missing_namespace_needs_no_clearing(tmp_path: Path) -> None:
    with Namespace() as namespace:
        redirects.note(
            f"{tmp_path}/network", {"path": namespace.path, "inode": namespace.inode(), "cookie": namespace.cookie()}
        )
        redirects.note(f"{tmp_path}/network", {"index": 2, "name": "eth0", "qdisc": True})
    redirects.release(str(tmp_path))
    assert os.listdir(tmp_path) == []
    redirects.release(str(tmp_path))


def test_namespace_of_the_host_is_never_adopted(tmp_path: Path) -> None:
    network = Network("", str(tmp_path))
    network.look()
    assert network.take_joining() is None
    with pytest.raises(ConfigError, match="the host's network"):
        network.adopt(open_process(os.getpid()))
    assert network.namespace == -1
    network.close()


def test_network_of_a_process_with_a_reused_pid_is_not_adopted(inside: Namespace, tmp_path: Path) -> None:
    """The namespace exists and is not that of the host. Only the pidfd shows that it belongs to another process."""
    network = Network("", str(tmp_path))
    argv = ["nsenter", f"--net={inside.path}", "sleep", "100"]
    with subprocess.Popen(argv) as other:
        wait_until(lambda: os.stat(f"/proc/{other.pid}/ns/net").st_ino == inside.inode())
        with pytest.raises(
            StateError, match=f"network namespace of the container's process {other.pid} on the host: it"
        ):
            network.adopt(reused(other.pid))
        assert (network.namespace, os.listdir(tmp_path)) == (-1, [])
        network.adopt(open_process(other.pid))
        assert os.fstat(network.namespace).st_ino == inside.inode()
        other.kill()
    network.close()
