"""Network interfaces in the guest, with this host's kernel: configured, renamed, moved to a container's namespace."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hawse.agent.devices import guest_drivers
from hawse.agent.machine import network
from hawse.errors import DeviceError, VmError
from hawse.host import network_namespace
from tests.support.guest_kernel import FakeKernel, FakeUevents
from tests.support.netns import Namespace

FIRST, SECOND = "0000:06:00.0", "0000:07:00.0"
MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02")


@pytest.fixture
def guest() -> Iterator[Namespace]:
    with Namespace() as namespace:
        namespace.ip("link add v0 type veth peer name v1")
        namespace.ip("link set lo up")
        yield namespace


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[FakeKernel]:
    kernel = FakeKernel(str(tmp_path))
    kernel.link("proc/sys/net", "/proc/sys/net")
    yield kernel
    kernel.close()


def index(guest: Namespace, name: str) -> int:
    return int(guest.shown(f"link show dev {name}")[0]["ifindex"])


def add(kernel: FakeKernel, guest: Namespace, address: str, name: str, *, driver: str = "virtio-pci") -> None:
    """The interface of a virtio function, as sysfs shows it."""
    if not os.path.exists(f"{kernel.root}/sys/bus/pci/devices/{address}"):
        kernel.function(address, group=1, driver=driver)
    kernel.attribute(address, f"virtio3/net/{name}/ifindex", f"{index(guest, name)}\n")
    kernel.write("sys/class/net/eth0/carrier", "1\n")
    kernel.write("sys/class/net/v0/carrier", "1\n")


def wish(address: str, name: str, **other: Any) -> dict[str, Any]:
    wished = {"address": address, "name": name, "mtu": 1500, "flags": 0x1000, "settings": {}}
    return wished | {"addresses": [], "routes": [], "neighbours": []} | other


def configure(guest: Namespace, kernel: FakeKernel, *interfaces: dict[str, Any], uevents: FakeUevents) -> None:
    network_namespace.within(
        guest.fd, lambda: network.configure(uevents, interfaces, seconds=10, root=kernel.root)
    )  # fmt: skip


def setting(guest: Namespace, name: str) -> str:
    return guest.execute("cat", f"/proc/sys/net/{name}").strip()


def test_interfaces_are_configured_like_those_of_the_host(guest: Namespace, kernel: FakeKernel) -> None:
    """They exchange names with each other. Routes without a gateway are added before routes that depend on them."""
    add(kernel, guest, FIRST, "v0")
    add(kernel, guest, SECOND, "v1")
    gateway = {"family": 4, "to": "", "prefix": 0, "gateway": "10.8.0.1"}
    link = {"family": 4, "to": "10.8.0.0", "prefix": 24, "scope": 253}
    eth0 = wish(
        FIRST, "eth0", mtu=1400, settings={"ipv6/accept_ra": "0", "ipv6/autoconf": "0"},
        addresses=[{"local": "10.9.0.2", "prefix": 24}, {"local": "fd77::2", "prefix": 64}],
        routes=[gateway, link], neighbours=[{"to": "10.9.0.9", "mac": MACS[0]}],
    )  # fmt: skip
    configure(guest, kernel, eth0, wish(SECOND, "v0", flags=0x80 | 0x100 | 0x200), uevents=FakeUevents())
    assert guest.links() == ["eth0", "v0"]
    [shown] = guest.shown("link show dev eth0")
    assert (shown["mtu"], "UP" in shown["flags"]) == (1400, True)
    assert {"UP", "NOARP", "PROMISC", "ALLMULTI"} <= set(flags := guest.shown("link show dev v0")[0]["flags"])
    assert "MULTICAST" not in flags and "NOARP" not in shown["flags"]
    addresses = {entry["local"] for entry in guest.shown("addr show dev eth0")[0]["addr_info"]}
    assert addresses == {"10.9.0.2", "fd77::2"}, "no address of the link is generated"
    routes = {route["dst"]: route.get("gateway") for route in guest.shown("route show")}
    assert routes == {"default": "10.8.0.1", "10.8.0.0/24": None, "10.9.0.0/24": None}
    assert [n["lladdr"] for n in guest.shown("neigh show dev eth0") if n["dst"] == "10.9.0.9"] == [MACS[0]]
    assert (setting(guest, "ipv6/conf/eth0/accept_ra"), setting(guest, "ipv6/conf/v0/accept_ra")) == ("0", "1")


def test_route_that_exists_with_its_address_is_not_an_error(guest: Namespace, kernel: FakeKernel) -> None:
    add(kernel, guest, FIRST, "v0")
    guest.ip("link set v1 up")
    own = {"family": 4, "to": "10.9.0.0", "prefix": 24, "source": "10.9.0.2", "scope": 253, "protocol": 2}
    eth0 = wish(FIRST, "eth0", addresses=[{"local": "10.9.0.2", "prefix": 24}], routes=[own])
    configure(guest, kernel, eth0, uevents=FakeUevents())
    assert [route["dst"] for route in guest.shown("route show")] == ["10.9.0.0/24"]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"addresses": [{"local": "10.9.0.2", "prefix": 24}] * 2}, "interface eth0: address 10.9.0.2/24: File exists"),
        (
            {"routes": [{"family": 4, "to": "", "prefix": 0, "gateway": "10.9.9.9"}]},
            "interface eth0: route to default/0 via 10.9.9.9: Network is unreachable",
        ),
        ({"mtu": 20}, "interface eth0: MTU 20: Invalid argument"),
    ],
)
def test_setting_that_the_kernel_refuses_is_named(
    guest: Namespace, kernel: FakeKernel, other: dict[str, Any], words: str
) -> None:
    add(kernel, guest, FIRST, "v0")
    guest.ip("link set v1 up")
    with pytest.raises(VmError, match=f"^the guest cannot configure {words}"):
        configure(guest, kernel, wish(FIRST, "eth0", **other), uevents=FakeUevents())


def test_interface_may_appear_after_its_device(guest: Namespace, kernel: FakeKernel) -> None:
    kernel.function(FIRST, group=1, driver="")
    steps = (
        lambda: kernel.bind(FIRST, "virtio-pci"),
        lambda: os.makedirs(f"{kernel.root}/sys/bus/pci/devices/{FIRST}/virtio3"),
        lambda: os.makedirs(f"{kernel.root}/sys/bus/pci/devices/{FIRST}/virtio3/net"),
        lambda: add(kernel, guest, FIRST, "v0"),
    )
    uevents = FakeUevents(*steps, lambda: None)
    configure(guest, kernel, wish(FIRST, "eth0"), uevents=uevents)
    assert len(uevents.steps) == 1
    assert guest.links() == ["eth0", "v1"]
    assert kernel.probed() == [FIRST]


def test_interface_that_never_appears_is_named(guest: Namespace, kernel: FakeKernel) -> None:
    kernel.function(FIRST, group=1, driver="virtio-pci")
    with pytest.raises(VmError, match=f"^{FIRST}: bound in the guest, but no network interface appeared within 10 s"):
        configure(guest, kernel, wish(FIRST, "eth0"), uevents=FakeUevents())


def test_addresses_are_added_when_the_link_has_a_carrier(guest: Namespace, kernel: FakeKernel) -> None:
    """Packets that are sent before that are dropped."""
    add(kernel, guest, FIRST, "v0")
    carrier = Path(kernel.root, "sys/class/net/eth0/carrier")
    carrier.write_text("0\n")
    driver = threading.Timer(0.2, carrier.write_text, ("1\n",))
    driver.start()
    eth0 = wish(FIRST, "eth0", addresses=[{"local": "10.9.0.2", "prefix": 24}])
    configure(guest, kernel, eth0, uevents=FakeUevents())
    assert carrier.read_text() == "1\n"
    driver.join()
    assert len(guest.shown("addr show dev eth0")[0]["addr_info"]) == 1


def test_loopback_is_set_up(guest: Namespace) -> None:
    guest.ip("link set lo down")
    network_namespace.within(guest.fd, network.raise_loopback)
    assert "UP" in guest.shown("link show dev lo")[0]["flags"]


@pytest.mark.parametrize(
    ("address", "port", "header", "name"),
    [
        ("0000:06:00.0", 0, 0x00, "enp6s0"),
        ("0000:06:00.0", 0, 0x80, "enp6s0f0"),
        ("0000:06:00.0", 1, None, "enp6s0d1"),
        ("0199:ff:1f.1", 0, 0x00, "enP409p255s31f1"),
        ("1000:ff:1f.1", 0, 0x00, "v0"),  # 16 characters are too many
    ],
)
def test_interface_of_a_native_function_is_found_by_its_address(
    guest: Namespace, kernel: FakeKernel, tmp_path: Path, address: str, port: int, header: int | None, name: str
) -> None:
    kernel.function(address, group=1, driver="e1000e", header=header)
    if header is None:
        kernel.attribute(address, "config", "")
    Path(tmp_path, "modules.dep").touch()

    def appear() -> None:
        kernel.attribute(address, "net/v0/ifindex", f"{index(guest, 'v0')}\n")
        kernel.attribute(address, "net/v0/dev_port", f"{port}\n")

    answer = network_namespace.within(
        guest.fd,
        lambda: guest_drivers.bind_native(
            FakeUevents(appear), address, drivers=str(tmp_path), seconds=10, root=kernel.root
        ),
    )  # fmt: skip
    assert answer == {"driver": "e1000e", "interfaces": ["v0"], "nodes": []}
    assert guest.links() == sorted(["v1", name])


def test_interfaces_move_to_the_network_namespace_of_their_container(guest: Namespace, kernel: FakeKernel) -> None:
    kernel.write("sys/class/net/v0/ifindex", f"{index(guest, 'v0')}\n")
    functions: list[dict[str, Any]] = [
        {"guest": {"address": FIRST}, "interfaces": ["v0"]}, {"guest": {"address": SECOND}, "interfaces": None},
        {"guest": {"address": SECOND}},
    ]  # fmt: skip
    with Namespace() as container, subprocess.Popen(
        ["ip", "netns", "exec", container.name, "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as first:  # fmt: skip
        assert first.stdin is not None and first.stdout is not None
        first.stdin.write(b"x")
        first.stdin.flush()
        assert first.stdout.read(1) == b"x"
        network_namespace.within(
            guest.fd, lambda: guest_drivers.move_interfaces(functions, first.pid, root=kernel.root)
        )
        assert (guest.links(), container.links()) == (["v1"], ["v0"])
        with pytest.raises(
            DeviceError, match=f"^{FIRST}: v0 cannot be moved to the network namespace of its container"
        ):
            network_namespace.within(
                guest.fd, lambda: guest_drivers.move_interfaces(functions[:1], first.pid, root=kernel.root)
            )
        first.stdin.close()
