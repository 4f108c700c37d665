"""The VFIO interface by which QEMU opens a group, group node or device file: request, support, and warnings."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from hawse.errors import DeviceError
from hawse.planner.devices.device_options import DeviceOptions
from hawse.planner.devices.iommu_backend import by_file
from hawse.vfio.emulated import EmulatedGroup
from hawse.vfio.groups import HostGroup, check_free, read_group
from hawse.vfio.host import iommufd
from hawse.vfio.node import file_node
from hawse.vfio.requests import device_files, find_request
from hawse.vm.qemu_features import Capabilities
from tests.support.oci import device
from tests.support.sysfs import FakeSysfs

NEW = Capabilities("10.0.2", frozenset({"vfio-pci"}), frozenset(), frozenset({"iommufd"}))
OLD = Capabilities("7.2.22", frozenset({"vfio-pci"}), frozenset())
PAIR = ("0000:3b:00.0", "0000:3b:00.1")


@pytest.fixture
def host(tmp_path: Path) -> FakeSysfs:
    """Group 12 with two functions, each of which has a device file."""
    sysfs = FakeSysfs(str(tmp_path))
    for number, address in enumerate(PAIR):
        sysfs.function(address, group=12)
        sysfs.device_file(address, number + 3, 510, number)
    sysfs.node(12, 511, 0)
    return sysfs


def choose(
    host: FakeSysfs,
    backend: str,
    *,
    asked: bool = True,
    can: Capabilities = NEW,
    managed: bool = False,
    maps_files: bool = True,
) -> tuple[frozenset[int], list[str]]:
    groups: list[HostGroup | EmulatedGroup] = [read_group(12, root=host.root), EmulatedGroup(5, ("edu",))]
    files = [file_node(12, path="/dev/vfio/devices/vfio3", major=510, minor=0, function=PAIR[0])] if asked else []
    options = DeviceOptions(backend=backend, managed=managed)
    return by_file(groups, files, options, lambda: can, maps_files=lambda: maps_files, root=host.root)


@pytest.mark.parametrize(
    ("backend", "asked", "expected"),
    [
        ("auto", True, [12]),
        ("auto", False, []),
        ("iommufd", True, [12]),
        ("iommufd", False, [12]),
        ("group", True, []),
        ("group", False, []),
    ],
)
def test_group_is_opened_by_the_requested_or_configured_interface(
    host: FakeSysfs, backend: str, asked: bool, expected: list[int]
) -> None:
    assert choose(host, backend, asked=asked) == (frozenset(expected), [])


def test_old_qemu_opens_the_group_node_with_a_warning(host: FakeSysfs) -> None:
    chosen, [warning] = choose(host, "auto", can=OLD)
    assert chosen == set()
    assert warning == (
        "group 12 is passed by /dev/vfio/12, not by its device files: "
        "QEMU 7.2.22 has no iommufd backend, which 9.0 introduced"
    )
    with pytest.raises(DeviceError, match="group 12 cannot be passed by its device files: QEMU 7"):
        choose(host, "iommufd", can=OLD)


@pytest.mark.parametrize(
    ("version", "maps_files", "works"),
    [("10.0.7", False, True), ("10.1.0", False, False), ("11.1.3", False, False), ("10.1.0", True, True)],
)
def test_qemu_that_maps_files_needs_a_kernel_that_supports_it(
    host: FakeSysfs, version: str, maps_files: bool, works: bool
) -> None:
    """Otherwise everything would seem to work, but no DMA transfer of the device would arrive."""
    can = replace(NEW, version=version)
    chosen, warnings = choose(host, "auto", can=can, maps_files=maps_files)
    assert chosen == ({12} if works else set())
    assert (
        warnings == []
        if works
        else warnings[0].endswith(f"QEMU {version} maps memory by its file, which needs Linux 6.13 or later")
    )


def test_kernel_is_tested_for_mapping_files(tmp_path: Path) -> None:
    """A file without this ioctl is another device; a missing file cannot be tested."""
    assert iommufd.maps_files(root=str(tmp_path)) is True
    os.mkdir(tmp_path / "dev")
    (tmp_path / "dev/iommu").write_text("")
    assert iommufd.maps_files(root=str(tmp_path)) is False


def test_qemu_is_not_queried_if_the_group_node_is_configured(host: FakeSysfs) -> None:
    def ask() -> Capabilities:
        raise AssertionError

    assert by_file([read_group(12, root=host.root)], [], DeviceOptions(), ask, root=host.root) == (frozenset(), [])


def test_every_function_of_the_group_needs_a_file(host: FakeSysfs) -> None:
    os.unlink(f"{host.root}/sys/bus/pci/devices/{PAIR[1]}/vfio-dev/vfio4/dev")
    assert choose(host, "auto")[1][0].endswith(": 0000:3b:00.1 has no device file (CONFIG_VFIO_DEVICE_CDEV)")


def test_device_file_may_appear_when_the_function_is_bound(host: FakeSysfs) -> None:
    os.unlink(f"{host.root}/sys/bus/pci/devices/{PAIR[1]}/vfio-dev/vfio4/dev")
    os.unlink(f"{host.root}/sys/bus/pci/devices/{PAIR[1]}/driver")
    assert choose(host, "iommufd", managed=True) == (frozenset({12}), [])


def test_host_without_iommufd_uses_the_group_node(host: FakeSysfs) -> None:
    os.unlink(f"{host.root}/dev/iommu")
    assert "this host has no /dev/iommu (CONFIG_IOMMUFD)" in choose(host, "auto")[1][0]


def test_token_requires_the_group_node(host: FakeSysfs) -> None:
    host.function("0000:04:00.0", group=9)
    os.symlink("../0000:04:00.0", f"{host.root}/sys/bus/pci/devices/{PAIR[0]}/physfn")
    assert choose(host, "auto")[1][0].endswith("0000:3b:00.0 needs a token, which works only with its group")


def test_device_named_by_both_interfaces_is_one_device(host: FakeSysfs) -> None:
    asked = [
        device("/dev/vfio/vfio", 10, 196), device("/dev/vfio/12", 511, 0),
        device("/dev/iommu", 10, 126), device("/dev/vfio/devices/vfio3", 510, 0), device("/dev/other", 510, 1),
    ]  # fmt: skip
    request = find_request(asked, emulated={}, root=host.root)
    assert [group.number for group in request.groups] == [12]
    assert [(file.path, file.host_group, file.function) for file in request.files] == [
        ("/dev/iommu", None, ""), ("/dev/vfio/devices/vfio3", 12, PAIR[0]), ("/dev/other", 12, PAIR[1]),
    ]  # fmt: skip


def test_device_file_of_an_emulated_group_has_its_number(host: FakeSysfs) -> None:
    emulated = {5: EmulatedGroup(5, ("edu", "edu"))}
    asked = [device("/dev/iommu", 10, 9), device("/dev/vfio/devices/vfio5", 1, 2)]
    request = find_request(asked, emulated=emulated, root=host.root)
    assert request.groups == (emulated[5],)
    assert [(file.path, file.host_group) for file in request.files] == [("/dev/iommu", None), (asked[1].path, 5)]
    assert [file.path for file in device_files(emulated[5])] == [asked[1].path]


def test_device_files_of_an_attached_group_are_found(host: FakeSysfs) -> None:
    files = device_files(read_group(12, root=host.root), root=host.root)
    assert [(file.path, file.major, file.minor, file.function) for file in files] == [
        ("/dev/vfio/devices/vfio3", 510, 0, PAIR[0]), ("/dev/vfio/devices/vfio4", 510, 1, PAIR[1]),
    ]  # fmt: skip


def test_kernel_without_group_nodes_is_supported(host: FakeSysfs) -> None:
    os.unlink(f"{host.root}/dev/vfio/12")
    check_free(read_group(12, root=host.root), root=host.root)
    os.unlink(f"{host.root}/sys/bus/pci/devices/{PAIR[1]}/vfio-dev/vfio4/dev")
    with pytest.raises(DeviceError, match="dev/vfio/12 cannot be opened: No such file"):
        check_free(read_group(12, root=host.root), root=host.root)
