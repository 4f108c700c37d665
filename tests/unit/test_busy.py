"""Detection of functions that the host uses itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hawse.errors import DeviceError
from hawse.vfio.bind import in_use
from tests.support.sysfs import FakeSysfs

ADDRESS = "0000:3b:00.0"
HEADER = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
DEFAULT = "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
NET_10 = "eth0\t0000000A\t00000000\t0001\t0\t0\t0\t000000FF\t0\t0\t0\n"


@pytest.fixture
def host(tmp_path: Path) -> FakeSysfs:
    """A function, and another function with an interface and a disk that must not matter."""
    fake = FakeSysfs(str(tmp_path))
    fake.function(ADDRESS, group=5, driver="native")
    fake.function("0000:3b:00.1", group=6, driver="native")
    fake.below("0000:3b:00.1", "net", "net/eth1")
    fake.below("0000:3b:00.1", "block", "host0/block/sda")
    fake.write("sys/class/block/sda/dev", "8:0\n")
    fake.write("proc/net/route", HEADER + DEFAULT.replace("eth0", "eth1"))
    fake.write("proc/self/mountinfo", "36 35 8:0 / / rw - ext4 /dev/sda rw\n")
    return fake


def refusal(host: FakeSysfs, claimed: set[str] = frozenset()) -> str:  # type: ignore[assignment]
    """The refusal of the function, "" for none; ``claimed`` are the nodes of exclusively claimed disks."""
    try:
        in_use.check(ADDRESS, root=host.root, claimed=lambda node: node.removeprefix(f"{host.root}/dev/") in claimed)
    except DeviceError as error:
        assert error.hint
        return error.message
    return ""


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (DEFAULT, "eth0 carries the default route"),
        (NET_10, "eth0 carries the route to 10.0.0.0/8"),
        (HEADER, ""),
        (DEFAULT.replace("eth0", "eth00"), ""),
        ("eth0\t0000000A\t0\t1\t0\t0\t0\t000000FF\n", "eth0 carries the route to 10.0.0.0/8"),
        ("eth0\t0000000A\t0\t1\t0\t0\t0\n", ""),
        ("eth0\tzz\t0\t0\t0\t0\t0\tzz\t0\t0\t0\n", "eth0 carries a route"),
        ("eth0\n", ""),
    ],
)
def test_ipv4_routes_of_an_interface(line: str, words: str) -> None:
    assert in_use.ipv4_route([HEADER, line], {"eth0"}) == words


def v6(target: str, length: int, *, flags: int = 1, interface: str = "eth0") -> str:
    target = target.ljust(32, "0")
    return f"{target} {length:02x} {'0' * 32} 00 {'0' * 32} 00000100 00000001 00000000 {flags:08x} {interface:>8}\n"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (v6("", 0), "eth0 carries the default route of IPv6"),
        (v6("20010db8", 64), "eth0 carries the route to 2001:db8::/64"),
        (v6("fd00", 64), "eth0 carries the route to fd00::/64"),
        (v6("fe80", 64), ""),
        (v6("febf", 128), ""),
        (v6("fec0", 64), "eth0 carries the route to fec0::/64"),
        (v6("2090", 64), "eth0 carries the route to 2090::/64"),
        (v6("ff", 8), ""),
        (v6("20010db8", 128, flags=0x80200001), ""),
        (v6("20010db8", 128, flags=0x00100001), ""),
        (v6("20010db8", 64, interface="lo"), ""),
        (v6("20010db8", 64, interface="eth1"), ""),
        (v6("20010db8", 64).replace("2001", "zzzz"), "eth0 carries a route"),
    ],
    ids=["default", "network", "unique local", "link-local", "last link-local", "site-local", "global", "multicast",
         "local", "anycast", "loopback", "another's", "odd"],
)  # fmt: skip
def test_ipv6_routes_of_an_interface(line: str, words: str) -> None:
    assert in_use.ipv6_route([line], {"eth0", "lo"}) == words


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("40 35 259:3 / /mnt - ext4 /dev/root rw", "/mnt"),
        ("40 35 0:44 / /mnt - btrfs /dev/sda1 rw", "/mnt"),
        ("40 35 259:3 / - ext4 /dev/sda1 rw", ""),
        ("40 35 259:30 / /mnt - ext4 /dev/sda10 rw", ""),
        ("40 35 259:3 / /my\\040disk\\134x rw - ext4", "/my disk\\x"),
    ],
)
def test_mount_is_found_by_its_numbers_or_its_source(line: str, place: str) -> None:
    assert in_use.mounted_at([line], "259:3", "sda1") == place


@given(st.lists(st.text() | st.text().map(lambda text: "eth0 " + text), max_size=4))
def test_any_content_of_the_tables_is_parsed(lines: list[str]) -> None:
    for answer in (in_use.ipv4_route(lines, {"eth0"}), in_use.ipv6_route(lines, {"eth0"})):
        assert answer == "" or answer.startswith("eth0 carries ")
    assert isinstance(in_use.mounted_at(lines, "8:1", "sda1"), str)
    in_use.is_swap(lines, "sda1")


def test_unused_function_is_accepted(host: FakeSysfs) -> None:
    assert refusal(host) == ""
    host.below(ADDRESS, "net", "virtio0/net/eth0")
    host.below(ADDRESS, "block", "virtio1/block/vda")
    assert refusal(host) == ""


@pytest.mark.parametrize("path", ["net/eth0", "virtio0/net/eth0"])
def test_nic_that_carries_a_route_is_refused(host: FakeSysfs, path: str) -> None:
    host.below(ADDRESS, "net", path)
    host.write("proc/net/route", HEADER + NET_10)
    assert refusal(host) == f"{ADDRESS} is the network interface eth0, and eth0 carries the route to 10.0.0.0/8"
    host.write("proc/net/route", HEADER)
    host.write("proc/net/ipv6_route", v6("fe80", 64))
    assert refusal(host) == ""
    host.write("proc/net/ipv6_route", v6("fe80", 64) + v6("", 0))
    assert refusal(host) == f"{ADDRESS} is the network interface eth0, and eth0 carries the default route of IPv6"


def test_nic_with_a_vlan_that_carries_a_route_is_refused(host: FakeSysfs) -> None:
    host.below(ADDRESS, "net", "net/eth0")
    host.link("sys/class/net/eth0/upper_eth0.7", "../../../eth0.7")
    host.write("sys/class/net/eth0.7/upper_macvlan1", "")
    host.write("sys/class/net/macvlan1/upper_eth0", "")  # a loop, which a kernel never creates, must end, too
    assert refusal(host) == ""
    host.write("proc/net/route", HEADER + DEFAULT.replace("eth0", "macvlan1"))
    assert refusal(host) == f"{ADDRESS} is the network interface eth0, and macvlan1 carries the default route"


def test_nic_that_is_a_port_of_a_bond_is_refused(host: FakeSysfs) -> None:
    host.below(ADDRESS, "net", "net/eth0")
    host.link("sys/class/net/eth0/master", "../../../virtual/net/bond0")
    assert refusal(host) == f"{ADDRESS} is the network interface eth0, which is a port of bond0"


MOUNT = "40 35 259:3 / /mnt/my\\040disk rw,noatime shared:1 - ext4 /dev/root rw\n"
BTRFS = "41 35 0:44 /sub /data rw - btrfs /dev/nvme0n1p1 rw\n"
SWAPS = "Filename\tType\tSize\tUsed\tPriority\n/dev/nvme0n1p1 partition 1048572 0 -2\n"


@pytest.fixture
def disk(host: FakeSysfs) -> FakeSysfs:
    """The function is an NVMe controller of one namespace with one partition."""
    host.below(ADDRESS, "block", "nvme/nvme0/nvme0n1")
    host.below(ADDRESS, "block", "nvme/nvme0/nvme0n1/nvme0n1p1")
    host.write("sys/class/block/nvme0n1/dev", "259:2\n")
    host.write("sys/class/block/nvme0n1p1/dev", "259:3\n")
    return host


@pytest.mark.parametrize(
    ("path", "text", "words"),
    [
        ("proc/self/mountinfo", MOUNT, "mounted at /mnt/my disk"),
        ("proc/self/mountinfo", BTRFS, "mounted at /data"),
        ("proc/swaps", SWAPS, "used as swap"),
        ("sys/class/block/nvme0n1p1/holders/dm-0", "", "part of dm-0"),
        ("sys/class/block/nvme0n1p1/holders/md127", "", "part of md127"),
    ],
)  # fmt: skip
def test_controller_of_a_disk_in_use_is_refused(disk: FakeSysfs, path: str, text: str, words: str) -> None:
    assert refusal(disk) == ""
    disk.write(path, text)
    assert refusal(disk) == f"{ADDRESS} has the disk nvme0n1p1, which is {words}"


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("proc/self/mountinfo", MOUNT.replace("259:3", "259:30")),
        ("proc/self/mountinfo", BTRFS.replace("p1", "p11")),
        ("proc/self/mountinfo", "40 35\n - \n\n"),
        ("proc/swaps", SWAPS.replace("n1p1", "n1p10")),
    ],
)
def test_use_of_another_disk_does_not_matter(disk: FakeSysfs, path: str, text: str) -> None:
    disk.write(path, text)
    assert refusal(disk) == ""


def test_controller_of_an_exclusively_claimed_disk_is_refused(disk: FakeSysfs) -> None:
    assert refusal(disk, {"nvme0n1"}) == f"{ADDRESS} has the disk nvme0n1, which is in exclusive use"


def test_disk_with_a_slash_in_its_name_is_found(host: FakeSysfs) -> None:
    host.below(ADDRESS, "block", "block/cciss!c0d0")
    assert refusal(host, {"cciss/c0d0"}) == f"{ADDRESS} has the disk cciss/c0d0, which is in exclusive use"


def test_disk_of_nvme_multipath_is_found(host: FakeSysfs) -> None:
    host.below(ADDRESS, "block", "nvme/nvme4/nvme2c4n1")
    host.link("sys/class/block/nvme2n1", "../../devices/virtual/nvme-subsystem/nvme-subsys2/nvme2n1")
    host.link("sys/class/block/nvme2n1p1", "../../devices/virtual/nvme-subsystem/nvme-subsys2/nvme2n1/nvme2n1p1")
    assert refusal(host) == ""
    host.write("proc/swaps", SWAPS.replace("nvme0n1p1", "nvme2n1p1"))
    assert refusal(host) == f"{ADDRESS} has the disk nvme2n1p1, which is used as swap"


@pytest.mark.parametrize(("text", "words"), [
    ("0\n", ""),
    ("3\n", f"{ADDRESS} has 3 virtual functions: VFIO does not accept a function with SR-IOV enabled"),
])  # fmt: skip
def test_function_with_virtual_functions_is_refused(host: FakeSysfs, text: str, words: str) -> None:
    host.write(f"sys/bus/pci/devices/{ADDRESS}/sriov_numvfs", text)
    assert refusal(host) == words


def test_invalid_number_of_virtual_functions_names_the_device(host: FakeSysfs) -> None:
    host.write(f"sys/bus/pci/devices/{ADDRESS}/sriov_numvfs", "many\n")
    with pytest.raises(DeviceError, match=r"0000:3b:00\.0: its sriov_numvfs cannot be read"):
        in_use.check(ADDRESS, root=host.root)


def test_group_whose_node_can_be_opened_has_no_holders(host: FakeSysfs) -> None:
    host.node(987654, 511, 0)
    assert in_use.holders(987654, root=host.root) == []
    assert in_use.holders(987655, root=host.root) == []


def test_nodes_that_are_not_claimed(tmp_path: Path) -> None:
    (tmp_path / "node").write_text("")
    assert not in_use.is_claimed(f"{tmp_path}/node")
    assert not in_use.is_claimed(f"{tmp_path}/missing")
