"""Functions of a group as sysfs shows them, and the answers of open(2) for the group's node."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hawse.errors import DeviceError
from hawse.oci.types import Device
from hawse.vfio import group_members, sysfs
from hawse.vfio.bind import in_use
from hawse.vfio.emulated import EmulatedGroup
from hawse.vfio.groups import Bar, Bridge, HostGroup, check_bridges, check_free, check_node, read_function, read_group
from hawse.vfio.node import VfioNode, file_node, group_node
from hawse.vfio.requests import device_files, find_request
from tests.support.oci import device
from tests.support.sysfs import FakeSysfs

A, B = "0000:03:00.0", "0000:03:00.1"


@pytest.fixture
def host(tmp_path: Path) -> FakeSysfs:
    """Two functions on vfio-pci in one group, and a bridge in another group."""
    fake = FakeSysfs(str(tmp_path))
    for address in (A, B):
        fake.function(address, group=7)
    fake.node(7, 511, 0)
    fake.function("0000:00:1d.0", group=8, class_code=0x060400)
    return fake


@pytest.mark.parametrize(
    ("line", "bar"),
    [
        ("0x0 0x0 0x0", None),
        ("0x1000 0x1000 0x200", None),
        ("0x1000 0x1001 0x200", Bar(0, 2, False, False, False)),
        ("0xc000 0xc01f 0x100", Bar(0, 32, True, False, False)),
        ("0x1000 0x1fff 0x2200", Bar(0, 4096, False, False, True)),
        ("0x1000 0x1fff 0x100200", Bar(0, 4096, False, True, False)),
    ],
)
def test_bar_has_the_size_and_the_kind_of_its_line(tmp_path: Path, line: str, bar: Bar | None) -> None:
    host = FakeSysfs(str(tmp_path))
    host.function(A, group=7, resource=line)
    [function] = read_group(7, root=host.root).functions
    assert function.bars == ((bar,) if bar else ())


def test_only_the_first_six_lines_are_bars(tmp_path: Path) -> None:
    """The seventh line is the option ROM; further lines are windows of bridges and BARs of virtual functions."""
    host = FakeSysfs(str(tmp_path))
    host.function(A, group=7, resource="\n".join(["0x1000 0x1fff 0x200"] * 13))
    [function] = read_group(7, root=host.root).functions
    assert [bar.index for bar in function.bars] == [0, 1, 2, 3, 4, 5]
    assert sysfs.bar_sizes(A, root=host.root) == [4096] * 6


@pytest.mark.parametrize("attribute", ["vendor", "device"])
@pytest.mark.parametrize("text", [None, "many\n"])
def test_unreadable_attribute_names_the_function(host: FakeSysfs, attribute: str, text: str | None) -> None:
    path = Path(host.root, "sys/bus/pci/devices", A, attribute)
    path.unlink() if text is None else path.write_text(text)
    reason = f"{path}: No such file or directory" if text is None else "invalid content"
    with pytest.raises(DeviceError) as caught:
        read_group(7, root=host.root)
    assert caught.value.message == f"0000:03:00.0: its {attribute} cannot be read from sysfs: {reason}"


def test_single_function_is_read_and_a_bridge_is_not(host: FakeSysfs) -> None:
    assert [function.address for function in read_function(A, root=host.root)] == [A]
    assert read_function("0000:00:1d.0", root=host.root) == []


@pytest.mark.parametrize(
    ("drivers", "words"),
    [
        (["pcieport", "vfio-pci"], ""),
        (["shpchp", "pcieport"], "the bridge b0 is bound to shpchp, which reserves"),
        (["shpchp", "", "ioatdma"], "the bridge b0 is bound to shpchp, the bridge b2 is bound to ioatdma, which"),
    ],
)
def test_all_bridges_on_other_drivers_are_named(drivers: list[str], words: str) -> None:
    group = HostGroup(7, (), tuple(Bridge(f"b{number}", driver) for number, driver in enumerate(drivers)))
    if not words:
        check_bridges(group)
        return
    with pytest.raises(DeviceError, match=f"group 7 is not viable: {words}"):
        check_bridges(group)


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.EACCES, "run hawse as root"),
        (errno.EPERM, "run hawse as root"),
        (errno.EIO, "the node exists while a device"),
    ],
)
def test_node_that_cannot_be_opened_is_named_with_the_reason(host: FakeSysfs, number: int, hint: str) -> None:
    def open_node(path: str, flags: int) -> int:
        assert (path, flags & os.O_ACCMODE) == (f"{host.root}/dev/vfio/7", os.O_RDWR)
        raise OSError(number, os.strerror(number))

    with pytest.raises(DeviceError) as caught:
        check_free(read_group(7, root=host.root), root=host.root, open_node=open_node)
    assert caught.value.message == f"group 7 ({A}, {B}): {host.root}/dev/vfio/7 cannot be opened: {os.strerror(number)}"
    assert caught.value.hint.startswith(hint)


def test_group_without_a_node_is_free_if_all_functions_have_device_files(host: FakeSysfs) -> None:
    os.unlink(f"{host.root}/dev/vfio/7")
    group = read_group(7, root=host.root)
    host.device_file(A, 0, 510, 0)
    with pytest.raises(DeviceError, match="dev/vfio/7 cannot be opened: No such file"):
        check_node(group, root=host.root)
    host.device_file(B, 1, 510, 1)
    check_node(group, root=host.root)
    check_free(group, root=host.root)


def test_node_below_a_file_is_an_error(host: FakeSysfs) -> None:
    """Only a missing node is accepted if there are device files. Any other error is reported."""
    for number, address in enumerate((A, B)):
        host.device_file(address, number, 510, number)
    group = read_group(7, root=host.root)
    os.rename(f"{host.root}/dev/vfio", f"{host.root}/dev/before")
    host.write("dev/vfio", "")
    with pytest.raises(DeviceError, match="dev/vfio/7 cannot be opened: Not a directory"):
        check_node(group, root=host.root)


def test_holders_of_nodes_and_device_files_are_named(host: FakeSysfs) -> None:
    host.device_file(A, 3, 510, 3)
    for pid, path in ((41, "dev/vfio/7"), (42, "dev/vfio/devices/vfio3"), (43, "dev/vfio/8")):
        host.link(f"proc/{pid}/fd/0", "/dev/null")
        host.link(f"proc/{pid}/fd/9", f"{host.root}/{path}")
        host.write(f"proc/{pid}/comm", f"program{pid}\n")
    host.write("proc/44", "")  # has ended in the meantime
    host.write("proc/version", "")
    assert sorted(in_use.holders(7, root=host.root)) == ["program41 (pid 41)", "program42 (pid 42)"]


@pytest.mark.parametrize(
    ("number", "users"),
    [(0, []), (errno.EBUSY, ["another process"]), (errno.ENOENT, []), (errno.EPERM, [])],
)
def test_holder_that_proc_does_not_show_is_another_process(host: FakeSysfs, number: int, users: list[str]) -> None:
    """In another mount namespace the node may have another path, but a group can be opened only once."""
    tried: list[tuple[str, int]] = []
    assert in_use.holders(7, root=host.root, open_node=opening(number, tried)) == users
    assert tried == [(f"{host.root}/dev/vfio/7", os.O_RDWR)]


@pytest.mark.parametrize(("number", "is_claimed"), [(0, False), (errno.EBUSY, True), (errno.ENOENT, False)])
def test_disk_is_claimed_if_it_cannot_be_opened_exclusively(number: int, is_claimed: bool) -> None:
    tried: list[tuple[str, int]] = []
    assert in_use.is_claimed("/dev/sda", open_node=opening(number, tried)) is is_claimed
    assert tried == [("/dev/sda", os.O_RDONLY | os.O_EXCL)]


def opening(number: int, tried: list[tuple[str, int]]) -> Callable[[str, int], int]:
    """An open(2) that fails with an errno, or opens another file; it records the flags without O_CLOEXEC."""

    def open_node(path: str, flags: int) -> int:
        tried.append((path, flags & ~os.O_CLOEXEC))
        if number:
            raise OSError(number, os.strerror(number))
        return os.open("/dev/null", os.O_RDONLY)

    return open_node


@pytest.mark.parametrize(("size", "expected"), [(0, False), (0x0E, False), (0x0F, True), (64, True)])
def test_truncated_configuration_space_is_taken_for_an_endpoint(tmp_path: Path, size: int, expected: bool) -> None:
    host = FakeSysfs(str(tmp_path))
    host.function(A, group=7, class_code=0x068000, header=1)
    os.truncate(f"{host.root}/sys/bus/pci/devices/{A}/config", size)
    assert group_members.is_bridge(A, root=host.root) is expected


def test_emulated_group_has_nodes_without_numbers(host: FakeSysfs) -> None:
    emulated = {5: EmulatedGroup(5, ("edu",))}
    devices = [
        device("/dev/vfio/5", None, None), device("/dev/vfio/devices/vfio5", None, None), device("/dev/iommu", 1, 2),
        device("/dev/vfio/vfio", 3, 4, "u"), device("/dev/vfio/5", 511, 0, "b"), device("/dev/null", 1, 3),
    ]  # fmt: skip
    request = find_request(devices, emulated=emulated, root=host.root)
    assert request.nodes == (
        group_node(5, path="/dev/vfio/5", minor=0),
        VfioNode(path="/dev/vfio/vfio", major=3, minor=4, host_group=None),
    )
    assert request.files == (
        file_node(5, path="/dev/vfio/devices/vfio5", major=0, minor=0),
        file_node(None, path="/dev/iommu", major=1, minor=2),
    )
    assert request.groups == (emulated[5],)
    assert device_files(emulated[5]) == [file_node(5, path="/dev/vfio/devices/vfio5", major=0, minor=5)]


def test_host_group_has_the_device_files_that_exist(host: FakeSysfs) -> None:
    group = read_group(7, root=host.root)
    assert device_files(group, root=host.root) == []
    host.device_file(B, 4, 510, 9)
    assert device_files(group, root=host.root) == [
        file_node(7, path="/dev/vfio/devices/vfio4", major=510, minor=9, function=B)
    ]


@pytest.mark.parametrize(
    ("node", "words"),
    [
        (device("/dev/mine", 511, 9), "/dev/mine: a device without an IOMMU"),
        (device("/dev/vfio/noiommu-3", 1, 3), "/dev/vfio/noiommu-3: a device without an IOMMU"),
        (device("/dev/iommu", 1, 3), "no VFIO device has the number 1:3"),
        (device("/dev/vfio/devices/vfio5", 1, 3), "no VFIO device has the number 1:3"),
        (device("/dev/vfio/9", 1, 3), "group 9 is missing: no VFIO device has the number 1:3"),
        (device("/dev/vfio/7", 1, 3), "group 7 is missing: no VFIO device has the number 1:3"),
    ],
)
def test_node_that_cannot_be_passed_is_named(host: FakeSysfs, node: Device, words: str) -> None:
    host.character_device(511, 9, "../../devices/virtual/vfio/noiommu-0")
    with pytest.raises(DeviceError, match=words):
        find_request([node], emulated={}, root=host.root)


def test_group_named_by_node_and_by_device_file_is_one_group(host: FakeSysfs) -> None:
    host.device_file(A, 3, 510, 3)
    devices = [device("/dev/a", 510, 3), device("/dev/b", 511, 0), device("/dev/c", 10, 126)]
    request = find_request(devices, emulated={}, managed=True, root=host.root)
    assert request.files == (
        file_node(7, path="/dev/a", major=510, minor=3, function=A),
        file_node(None, path="/dev/c", major=10, minor=126),
    )
    assert request.nodes == (group_node(7, path="/dev/b", major=511, minor=0),)
    assert [group.number for group in request.groups] == [7]


def test_device_file_of_the_host_is_the_hosts_where_an_emulated_group_has_the_number(host: FakeSysfs) -> None:
    host.device_file(A, 3, 510, 3)
    request = find_request([device("/dev/a", 510, 3)], emulated={7: EmulatedGroup(7, ("edu",))}, root=host.root)
    assert request.files == (file_node(7, path="/dev/a", major=510, minor=3, function=A),)
    assert request.groups == (read_group(7, root=host.root),)


def test_groups_are_in_the_order_of_their_first_nodes(host: FakeSysfs) -> None:
    emulated = {5: EmulatedGroup(5, ("edu",)), 4: EmulatedGroup(4, ("edu",))}
    devices = [
        device("/dev/vfio/5", 0, 0),
        device("/dev/b", 511, 0),
        device("/dev/vfio/4", 0, 0),
        device("/dev/c", 511, 0),
    ]
    request = find_request([*devices, device("/dev/vfio/5", 0, 0)], emulated=emulated, root=host.root)
    assert [group.number for group in request.groups] == [5, 7, 4]
    assert [node.host_group for node in request.nodes] == [5, 7, 4, 7, 5]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("10:126\n", (10, 126)), ("10:\n", None), (":126\n", None), ("", None), ("a:1", None), ("1:a", None)],
)
def test_invalid_device_numbers_are_none(host: FakeSysfs, text: str, numbers: tuple[int, int] | None) -> None:
    assert sysfs.iommu_numbers(root=host.root) is None
    host.write("sys/class/misc/iommu/dev", text)
    assert sysfs.iommu_numbers(root=host.root) == numbers


@pytest.mark.parametrize(("name", "expected"), [("vfio12", 12), ("vfio", None), ("vfiox", None), ("other3", None)])
def test_device_file_is_recognized_by_its_name(host: FakeSysfs, name: str, expected: int | None) -> None:
    host.write(f"sys/bus/pci/devices/{A}/vfio-dev/{name}/dev", "510:7\n")
    assert sysfs.device_file(A, root=host.root) == ((expected, 510, 7) if expected else None)
