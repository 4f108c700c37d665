"""Groups, their viability, and the VFIO nodes of a specification, with a fake sysfs."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hawse.errors import ConfigError, DeviceError
from hawse.oci.types import Device
from hawse.vfio import group_members, obstacles
from hawse.vfio.emulated import EmulatedGroup, find, read_table
from hawse.vfio.groups import Bar, Bridge, check_free, check_viable, holders, read_group
from hawse.vfio.obstacles import check_token
from hawse.vfio.requests import find_request
from tests.support.oci import device
from tests.support.sysfs import FakeSysfs

RESOURCE = """0x00000000fe000000 0x00000000fe01ffff 0x0000000000040200
0x000000000000c000 0x000000000000c01f 0x0000000000040101
0x0000004000000000 0x00000041ffffffff 0x000000000014220c
0x0000000000000000 0x0000000000000000 0x0000000000000000
"""


@pytest.fixture
def host(tmp_path: Path) -> FakeSysfs:
    """A host with a single function in its own group, two functions behind a bridge, and the container node."""
    fake = FakeSysfs(str(tmp_path))
    fake.function("0000:01:00.0", group=5, resource=RESOURCE)
    fake.node(5, 511, 0)
    fake.function("0000:00:1c.0", group=6, driver="pcieport", class_code=0x060400)
    fake.function("0000:02:00.1", group=6)
    fake.function("0000:02:00.0", group=6)
    fake.node(6, 511, 1)
    fake.character_device(10, 196, "../../devices/virtual/misc/vfio")
    return fake


def test_group_has_its_endpoints_in_order_and_no_bridge(host: FakeSysfs) -> None:
    group = read_group(6, root=host.root)
    assert [function.address for function in group.functions] == ["0000:02:00.0", "0000:02:00.1"]
    check_viable(group)


@pytest.mark.parametrize(
    ("class_code", "header", "expected"),
    [
        (0x060000, 0x00, True),  # a host bridge
        (0x060400, 0x81, True),
        (0x060401, None, True),
        (0x060900, None, True),
        (0x060700, 0x02, True),  # CardBus
        (0x068000, 0x01, True),
        (0x068000, 0x00, False),  # an NVSwitch
        (0x060100, 0x80, False),  # an LPC controller
        (0x068000, 0xFF, False),  # a function that no longer answers
        (0x068000, None, False),
        (0x020000, None, False),
    ],
)
def test_bridge_is_recognized_by_its_class_or_its_header(
    tmp_path: Path, class_code: int, header: int | None, *, expected: bool
) -> None:
    host = FakeSysfs(str(tmp_path))
    host.function("0000:03:00.0", group=7, class_code=class_code, header=header)
    assert group_members.is_bridge("0000:03:00.0", root=host.root) == expected


def test_nvswitch_is_passed_with_its_group(host: FakeSysfs) -> None:
    host.function("0000:02:00.2", group=6, class_code=0x068000, header=0)
    group = read_group(6, root=host.root)
    assert [function.address for function in group.functions] == ["0000:02:00.0", "0000:02:00.1", "0000:02:00.2"]
    assert group.bridges == (Bridge("0000:00:1c.0", "pcieport"),)


@pytest.mark.parametrize("driver", ["", "pcieport", "pci-stub", "vfio-pci"])
def test_bridge_on_a_driver_without_dma_is_accepted(tmp_path: Path, driver: str) -> None:
    host = FakeSysfs(str(tmp_path))
    host.function("0000:03:00.0", group=7)
    host.function("0000:00:1c.0", group=7, class_code=0x060400, driver=driver)
    check_viable(read_group(7, root=host.root))


@pytest.mark.parametrize(("class_code", "driver"), [(0x060400, "shpchp"), (0x060000, "skx_edac")])
def test_group_with_a_bridge_on_another_driver_is_refused(tmp_path: Path, class_code: int, driver: str) -> None:
    host = FakeSysfs(str(tmp_path))
    host.function("0000:03:00.0", group=7)
    host.function("0000:00:1c.0", group=7, class_code=class_code, driver=driver)
    for check in (check_viable, obstacles.check):
        with pytest.raises(DeviceError) as caught:
            check(read_group(7, root=host.root))
        assert caught.value.message == (
            f"group 7 is not viable: the bridge 0000:00:1c.0 is bound to {driver}, which reserves the DMA of the whole "
            "group for the kernel"
        )
        assert caught.value.hint == f"unbind the bridge: `echo 0000:00:1c.0 > /sys/bus/pci/drivers/{driver}/unbind`"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("83b8f4f2-509f-382f-3c1e-e6bfe0fa1001", "mediated devices cannot be passed"),
        ("PNP0C02:00", "only PCI functions can be passed"),
    ],
)
def test_member_that_is_not_a_pci_function_is_refused_by_its_name(host: FakeSysfs, name: str, words: str) -> None:
    host.member(6, name, f"../../../../devices/{name}")
    with pytest.raises(DeviceError) as caught:
        read_group(6, root=host.root)
    assert caught.value.message.startswith(f"IOMMU group 6: {name}: {words}")
    assert caught.value.hint


def test_bars_have_sizes_and_kinds(host: FakeSysfs) -> None:
    [function] = read_group(5, root=host.root).functions
    assert function.bars == (
        Bar(0, 0x20000, is_io=False, is_64bit=False, is_prefetchable=False),
        Bar(1, 32, is_io=True, is_64bit=False, is_prefetchable=False),
        Bar(2, 8 << 30, is_io=False, is_64bit=True, is_prefetchable=True),
    )


@pytest.mark.parametrize("resource", ["garbage", "0x1 0x2", "0x1 zz 0x3"])
def test_invalid_resource_file_names_the_device(tmp_path: Path, resource: str) -> None:
    host = FakeSysfs(str(tmp_path))
    host.function("0000:01:00.0", group=5, resource=resource)
    with pytest.raises(DeviceError, match=r"0000:01:00\.0: its BARs cannot be read"):
        read_group(5, root=host.root)


@pytest.mark.parametrize(
    ("drivers", "words"),
    [
        (["ixgbe"], "group 7 cannot be passed: 0000:03:00.0 is bound to ixgbe; it must be bound to vfio-pci"),
        ([""], "group 7 cannot be passed: 0000:03:00.0 has no driver; it must be bound to vfio-pci"),
        (
            ["ixgbe", "vfio-pci", ""],
            "group 7 is not viable: 0000:03:00.0 is bound to ixgbe, 0000:03:00.2 has no driver; "
            "all of its 3 functions must be bound to vfio-pci",
        ),
    ],
)
def test_every_function_on_another_driver_is_named(tmp_path: Path, drivers: list[str], words: str) -> None:
    host = FakeSysfs(str(tmp_path))
    for number, driver in enumerate(drivers):
        host.function(f"0000:03:00.{number}", group=7, driver=driver)
    with pytest.raises(DeviceError) as caught:
        check_viable(read_group(7, root=host.root))
    assert caught.value.message == words
    assert caught.value.hint.startswith("`hawse bind 0000:03:00.")


def test_variant_driver_is_accepted(tmp_path: Path) -> None:
    host = FakeSysfs(str(tmp_path))
    host.function("0000:03:00.0", group=7, driver="mlx5_vfio_pci")
    check_viable(read_group(7, root=host.root))


@pytest.mark.parametrize(("group", "words"), [(99, "does not exist"), (8, "contains only bridges")])
def test_group_without_endpoints_is_an_error(host: FakeSysfs, group: int, words: str) -> None:
    host.function("0000:00:1d.0", group=8, class_code=0x060400)
    with pytest.raises(DeviceError, match=words):
        read_group(group, root=host.root)


@pytest.mark.parametrize(
    ("driver", "token", "refused"), [("igb", "", False), ("vfio-pci", "", True), ("vfio-pci", "t", False)]
)
def test_virtual_function_of_a_function_on_vfio_needs_its_token(
    host: FakeSysfs, driver: str, token: str, refused: bool
) -> None:
    host.function("0000:04:00.0", group=9, driver=driver)
    host.function("0000:04:10.0", group=10)
    os.symlink("../0000:04:00.0", f"{host.root}/sys/bus/pci/devices/0000:04:10.0/physfn")
    group = read_group(10, root=host.root)
    if not refused:
        check_token(group, token)
        return
    with pytest.raises(
        DeviceError, match=r"0000:04:10\.0 of group 10 is a virtual function of 0000:04:00\.0, which is bound"
    ):
        check_token(group, token)


def test_missing_node_is_named(tmp_path: Path) -> None:
    host = FakeSysfs(str(tmp_path))
    host.function("0000:03:00.0", group=7)
    with pytest.raises(DeviceError, match=r"group 7 \(0000:03:00\.0\): \S+/dev/vfio/7 cannot be opened: No such file"):
        check_free(read_group(7, root=host.root), root=host.root)


def busy(_path: str, _flags: int) -> int:
    """The error of open(2) for the node of a group that is open already."""
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))


def test_process_that_has_a_group_open_is_named(host: FakeSysfs) -> None:
    group = read_group(5, root=host.root)
    check_free(group, root=host.root)
    with pytest.raises(DeviceError, match=r"group 5 \(0000:01:00\.0\) is in use: another process has"):
        check_free(group, root=host.root, open_node=busy)
    host.link("proc/4242/fd/9", f"{host.root}/dev/vfio/5")
    host.write("proc/4242/comm", "qemu-system-x86\n")
    assert holders(5, root=host.root) == [(4242, "qemu-system-x86")]
    with pytest.raises(DeviceError, match=r"is in use: qemu-system-x86 \(pid 4242\) has \S+/dev/vfio/5 open"):
        check_free(group, root=host.root, open_node=busy)


def test_nodes_are_found_by_their_numbers_at_any_path(host: FakeSysfs) -> None:
    request = find_request(
        [device("/dev/my-nic", 511, 1), device("/dev/vfio/vfio", 10, 196), device("/dev/vfio/5", 511, 0)],
        emulated={},
        root=host.root,
    )
    assert [(node.path, node.host_group) for node in request.nodes] == [
        ("/dev/my-nic", 6), ("/dev/vfio/vfio", None), ("/dev/vfio/5", 5),
    ]  # fmt: skip
    assert [group.number for group in request.groups] == [6, 5]


def test_group_at_two_paths_is_one_group(host: FakeSysfs) -> None:
    request = find_request([device("/dev/a", 511, 0), device("/dev/b", 511, 0)], emulated={}, root=host.root)
    assert len(request.nodes) == 2
    assert len(request.groups) == 1


def test_emulated_group_takes_precedence_over_the_hosts(host: FakeSysfs) -> None:
    emulated = {5: EmulatedGroup(5, ("edu",))}
    request = find_request([device("/dev/vfio/5", 511, 0)], emulated=emulated, root=host.root)
    assert request.groups == (emulated[5],)


@pytest.mark.parametrize(
    ("path", "major", "minor", "expected"),
    [
        ("/dev/vfio/5", 0, 0, (5, False)),
        ("/dev/vfio/5", 1, 3, (5, False)),
        ("/dev/vfio/6", 511, 5, (6, False)),  # the path takes precedence over the numbers
        ("/dev/vfio/devices/vfio5", 0, 0, (5, True)),
        ("/dev/vfio-mine/5", 511, 5, (5, False)),
        ("/dev/accelerator", 240, 6, (6, False)),
        ("/dev/mine/vfio5", 510, 5, (5, True)),
        ("/dev/vfio/71", 511, 5, (5, False)),  # --device /dev/vfio/5:/dev/vfio/71
        ("/dev/other", 1, 3, (8, False)),  # the host's node at /dev/vfio/8 has these numbers
        ("/dev/other", 1, 5, (8, True)),
        ("/dev/vfio-mine/5", 511, 9, None),
        ("/dev/null", 1, 7, None),
        ("/dev/nvidia-uvm", 509, 5, None),  # not in sysfs, but another driver's major
        ("/dev/hwrng", 508, 5, None),  # another device in sysfs
        ("/dev/low", 200, 5, None),  # a major that is assigned statically
    ],
)
def test_emulated_group_is_found_by_its_path_or_its_numbers(
    tmp_path: Path, path: str, major: int, minor: int, expected: tuple[int, bool] | None
) -> None:
    host = FakeSysfs(str(tmp_path))
    host.write("proc/devices", "Character devices:\n  1 mem\n509 nvidia-uvm\n511 vfio\n\nBlock devices:\n240 sd\n")
    host.character_device(508, 5, "../../devices/virtual/misc/hw_random")
    os.makedirs(f"{host.root}/dev/vfio/devices")
    os.mknod(f"{host.root}/dev/vfio/8", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mknod(f"{host.root}/dev/vfio/devices/vfio8", stat.S_IFCHR | 0o600, os.makedev(1, 5))
    emulated = {number: EmulatedGroup(number, ("edu",)) for number in (5, 6, 8)}
    assert find(path, major, minor, emulated, root=host.root) == expected
    devices = [device(path, major, minor)]
    if expected:
        request = find_request(devices, emulated=emulated, root=host.root)
        assert [(node.path, node.host_group) for node in (request.nodes, request.files)[expected[1]]] == [
            (path, expected[0])
        ]
    elif "vfio" in path:
        with pytest.raises(DeviceError, match="/dev/vfio-mine/5: neither a device of the host nor an emulated"):
            find_request(devices, emulated=emulated, root=host.root)
    else:
        assert find_request(devices, emulated=emulated, root=host.root).groups == ()


def test_emulated_group_takes_precedence_over_the_hosts_at_any_path(host: FakeSysfs) -> None:
    emulated = {5: EmulatedGroup(5, ("edu",))}
    request = find_request([device("/dev/mine", 511, 0)], emulated=emulated, root=host.root)
    assert request.groups == (emulated[5],)


def test_vfio_container_is_recognized_by_its_numbers(tmp_path: Path) -> None:
    """The numbers are static; a host with only emulated groups may not have VFIO."""
    request = find_request([device("/dev/mine", 10, 196)], emulated={}, root=str(tmp_path))
    assert [(node.path, node.host_group) for node in request.nodes] == [("/dev/mine", None)]


def test_other_devices_are_ignored(host: FakeSysfs) -> None:
    others = [device("/dev/null", 1, 3), device("/dev/vfio/5", 511, 0, kind="b"), device("/dev/fuse", 10, 229)]
    assert find_request(others, emulated={}, root=host.root).nodes == ()


@pytest.mark.parametrize(
    ("node", "words"),
    [
        (device("/dev/vfio/42", 511, 42), "group 42 is missing"),
        (device("/dev/iommu", 10, 126), "no VFIO device has the number 10:126"),
        (device("/dev/vfio/devices/vfio0", 510, 0), "no VFIO device has the number 510:0"),
        (device("/dev/vfio/noiommu-0", 511, 9), "without an IOMMU"),
    ],
)
def test_vfio_node_that_cannot_be_passed_is_refused(host: FakeSysfs, node: Device, words: str) -> None:
    with pytest.raises(DeviceError, match=words) as caught:
        find_request([node], emulated={}, root=host.root)
    assert node.path in caught.value.message
    assert caught.value.hint


def test_node_without_an_iommu_is_refused_at_the_path_of_a_managed_group(host: FakeSysfs) -> None:
    """The numbers decide which device is meant, not the path."""
    host.function("0000:3d:00.0", group=17, driver="e1000e")
    host.character_device(241, 3, "vfio/noiommu-20")
    with pytest.raises(DeviceError, match="a device without an IOMMU cannot be passed"):
        find_request([device("/dev/vfio/17", 241, 3)], emulated={}, managed=True, root=host.root)


def test_group_whose_node_is_gone_names_the_present_driver(tmp_path: Path) -> None:
    host = FakeSysfs(str(tmp_path))
    host.function("0000:03:00.0", group=7, driver="ixgbe")
    with pytest.raises(DeviceError, match=r"0000:03:00\.0 is bound to ixgbe"):
        find_request([device("/dev/vfio/7", 511, 3)], emulated={}, root=host.root)


def test_device_file_belongs_to_the_group_of_its_function(host: FakeSysfs) -> None:
    host.character_device(510, 3, "../../devices/pci0000:00/0000:01:00.0/vfio-dev/vfio3")
    host.character_device(10, 126, "../../devices/virtual/misc/iommu")
    devices = [device("/dev/iommu", 10, 126), device("/dev/vfio/devices/vfio3", 510, 3)]
    request = find_request(devices, emulated={}, root=host.root)
    assert [(file.path, file.host_group) for file in request.files] == [
        ("/dev/iommu", None),
        ("/dev/vfio/devices/vfio3", 5),
    ]
    assert [group.number for group in request.groups] == [5]
    mediated = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"
    host.character_device(510, 5, f"../../devices/pci0000:00/0000:00:02.0/{mediated}/vfio-dev/vfio5")
    with pytest.raises(DeviceError, match=rf"vfio5: {mediated}: mediated devices cannot be passed"):
        find_request([device("/dev/vfio/devices/vfio5", 510, 5)], emulated={}, root=host.root)
    host.character_device(510, 4, "../../devices/virtual/nothing/vfio-dev/vfio4")
    with pytest.raises(DeviceError, match="nothing is not in an IOMMU group"):
        find_request([device("/dev/vfio/devices/vfio4", 510, 4)], emulated={}, root=host.root)


def test_managed_group_is_found_without_a_node(tmp_path: Path) -> None:
    host = FakeSysfs(str(tmp_path))
    host.function("0000:03:00.0", group=7, driver="ixgbe")
    request = find_request([device("/dev/vfio/7", 511, 3)], emulated={}, managed=True, root=host.root)
    assert [node.host_group for node in request.nodes] == [7]
    with pytest.raises(DeviceError, match="group 8 is missing"):
        find_request([device("/dev/vfio/8", 511, 3)], emulated={}, managed=True, root=host.root)


@given(st.dictionaries(st.text(max_size=5), st.lists(st.text(max_size=8), max_size=10), max_size=4))
def test_any_table_of_emulated_groups_is_accepted_or_refused(table: dict[str, list[str]]) -> None:
    try:
        groups = read_table(table)
    except ConfigError as error:
        assert "emulated." in error.message
    else:
        assert set(groups) == {int(key) for key in table}
