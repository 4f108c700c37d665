"""The data of `hawse devices` about each group: whether it can be passed and, if not, the reason and a remedy."""

from __future__ import annotations

import json
import os
import shutil
from argparse import Namespace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hawse.cli.own import devices
from hawse.cli.settings import Settings
from hawse.log import Log
from hawse.vfio import inventory
from hawse.vfio.host import pci_ids
from tests.support.sysfs import FakeSysfs

A, B = "0000:3b:00.0", "0000:3b:00.1"
TABLE = """# comment
10de  Other Corporation
\t10d3  Not this one
8086  Intel Corporation
\t10d3  82574L Gigabit Network Connection
\t\t1af4 1100  QEMU Virtual Machine
\t10d4  Another
zz garbage
C 02  Network controller
\t10d3  No device at all
"""


@pytest.fixture
def host(tmp_path: Path) -> FakeSysfs:
    fake = FakeSysfs(str(tmp_path))
    fake.function("0000:3a:00.0", group=7, driver="pcieport", class_code=0x060400)
    fake.function(A, group=7)
    fake.node(7, 511, 0)
    return fake


def only(host: FakeSysfs, users: tuple[tuple[int, str], ...] = ()) -> inventory.Listing:
    [listing] = inventory.read(root=host.root, holders=lambda _number: list(users))
    return listing


def test_group_that_can_be_passed(host: FakeSysfs) -> None:
    host.write(f"sys/bus/pci/devices/{A}/numa_node", "1\n")
    listing = only(host)
    assert (listing.number, listing.node, listing.refusal) == (7, True, "")
    assert [(entry.function.address, entry.numa) for entry in listing.entries] == [(A, 1)], "bridges are left out"


def test_open_group_cannot_be_passed(host: FakeSysfs) -> None:
    assert only(host, ((42, "qemu-system-x86"),)).refusal == "it is in use: qemu-system-x86 (pid 42)"


def test_sibling_on_a_host_driver_is_the_reason(host: FakeSysfs) -> None:
    host.function(B, group=7, driver="ixgbe")
    listing = only(host)
    assert f"{B} is bound to ixgbe" in listing.refusal
    assert listing.remedy.startswith(f"`hawse bind {B}`")


@pytest.mark.parametrize(
    ("regions", "refused"),
    [
        ("0x00000000fee00000 0x00000000feefffff msi\n", False),
        ("0x00000000000e0000 0x00000000000effff direct-relaxable\n", False),
        ("0x00000000000e0000 0x00000000000effff direct\n", True),
        ("garbage\n", False),
    ],
)
def test_group_with_memory_at_fixed_addresses_is_refused(host: FakeSysfs, regions: str, refused: bool) -> None:
    host.write("sys/kernel/iommu_groups/7/reserved_regions", regions)
    assert ("its firmware requires memory" in only(host).refusal) == refused


def test_group_without_a_node_can_be_passed_only_by_device_files(host: FakeSysfs) -> None:
    os.unlink(f"{host.root}/dev/vfio/7")
    listing = only(host)
    assert "dev/vfio/7 cannot be opened: No such file or directory" in listing.refusal
    assert (listing.node, bool(listing.remedy)) == (False, True)
    host.device_file(A, 0, 510, 0)
    assert only(host).refusal == ""


def test_device_without_an_iommu_is_refused(host: FakeSysfs) -> None:
    os.rename(f"{host.root}/dev/vfio/7", f"{host.root}/dev/vfio/noiommu-7")
    host.write("sys/kernel/iommu_groups/7/name", "vfio-noiommu\n")
    listing = only(host)
    assert listing.refusal == f"group 7 ({A}): a device without an IOMMU cannot be passed to a VM"
    assert listing.remedy == "enable the host's IOMMU"


def test_group_of_mediated_devices_is_listed_with_the_reason(host: FakeSysfs) -> None:
    host.member(8, "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001", "../nothing")
    listing = inventory.read(root=host.root, holders=lambda _: [])[1]
    assert (listing.number, listing.entries) == (8, ())
    assert "mediated devices cannot be passed" in listing.refusal


def test_group_with_a_bridge_on_another_driver_is_refused(host: FakeSysfs) -> None:
    host.function("0000:39:00.0", group=7, driver="shpchp", class_code=0x060400)
    assert only(host).refusal.startswith("group 7 is not viable: the bridge 0000:39:00.0 is bound to shpchp")


def test_physical_function_with_virtual_functions_is_refused(host: FakeSysfs) -> None:
    host.function("0000:3c:00.0", group=8, driver="igb")
    host.write("sys/bus/pci/devices/0000:3c:00.0/sriov_totalvfs", "7\n")
    host.write("sys/bus/pci/devices/0000:3c:00.0/sriov_numvfs", "2\n")
    listing = inventory.read(root=host.root, holders=lambda _: [])[1]
    assert (
        listing.refusal == "0000:3c:00.0 has 2 virtual functions: VFIO does not accept a function with SR-IOV enabled"
    )
    assert listing.entries[0].virtual == (2, 7)


@pytest.mark.parametrize(
    ("driver", "virtual", "refusal"),
    [
        ("vfio-pci", (0, 7), ""),
        ("vfio-pci", (2, 7), ""),
        ("igb", (0, 7), f"group 7 cannot be passed: {A} is bound to igb; it must be bound to vfio-pci"),
        ("igb", (1, 7), f"{A} has 1 virtual function: VFIO does not accept a function with SR-IOV enabled"),
    ],
)
def test_virtual_functions_matter_only_on_a_native_driver(
    tmp_path: Path, driver: str, virtual: tuple[int, int], refusal: str
) -> None:
    host = FakeSysfs(str(tmp_path))
    host.function(A, group=7, driver=driver)
    host.node(7, 511, 0)
    host.write(f"sys/bus/pci/devices/{A}/sriov_numvfs", f"{virtual[0]}\n")
    host.write(f"sys/bus/pci/devices/{A}/sriov_totalvfs", f"{virtual[1]}\n")
    listing = only(host)
    assert (listing.refusal, listing.entries[0].virtual) == (refusal, virtual)


def test_groups_of_bridges_and_unreadable_functions_are_skipped(host: FakeSysfs) -> None:
    host.function("0000:38:00.0", group=6, driver="pcieport", class_code=0x060400)
    for address in ("0000:50:00.0", "0000:51:00.0"):
        host.function(address, group=9)
        os.unlink(f"{host.root}/sys/bus/pci/devices/{address}/iommu_group")
    shutil.rmtree(f"{host.root}/sys/kernel/iommu_groups/9")
    os.unlink(f"{host.root}/sys/bus/pci/devices/0000:50:00.0/vendor")
    listings = inventory.read(root=host.root, holders=lambda _: [])
    assert [(listing.number, len(listing.entries)) for listing in listings] == [(7, 1), (None, 1)]
    assert listings[1].entries[0].function.address == "0000:51:00.0"
    assert (listings[1].entries[0].numa, listings[1].entries[0].virtual) == (-1, None)


def test_noiommu_groups_do_not_count_as_an_iommu(host: FakeSysfs) -> None:
    host.write("sys/kernel/iommu_groups/7/name", "vfio-noiommu\n")
    host.function("0000:51:00.0", group=9)
    os.unlink(f"{host.root}/sys/bus/pci/devices/0000:51:00.0/iommu_group")
    shutil.rmtree(f"{host.root}/sys/kernel/iommu_groups/9")
    assert inventory.read(root=host.root, holders=lambda _: [])[-1].refusal == "no IOMMU is enabled on this host"


def test_functions_without_a_group_come_last(host: FakeSysfs) -> None:
    host.function("0000:00:02.0", group=9, driver="virtio-pci")
    os.unlink(f"{host.root}/sys/bus/pci/devices/0000:00:02.0/iommu_group")
    shutil.rmtree(f"{host.root}/sys/kernel/iommu_groups/9")
    listings = inventory.read(root=host.root, holders=lambda _: [])
    assert [listing.number for listing in listings] == [7, None]
    assert listings[1].refusal == "not in an IOMMU group"
    shutil.rmtree(f"{host.root}/sys/kernel/iommu_groups")
    assert inventory.read(root=host.root)[-1].refusal == "no IOMMU is enabled on this host"


def test_names_are_taken_from_pci_ids(tmp_path: Path) -> None:
    host = FakeSysfs(str(tmp_path))
    ids = [(0x8086, 0x10D3), (0x8086, 0xFFFF)]
    assert pci_ids.names(ids, root=host.root) == {ids[0]: "8086:10d3", ids[1]: "8086:ffff"}
    host.write("usr/share/misc/pci.ids", TABLE)
    assert pci_ids.names(ids, root=host.root) == {
        ids[0]: "Intel Corporation 82574L Gigabit Network Connection", ids[1]: "8086:ffff",
    }  # fmt: skip


@settings(max_examples=50)
@given(text=st.text(max_size=200))
def test_any_table_of_names_is_parsed(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    host = FakeSysfs(str(tmp_path_factory.mktemp("root")))
    host.write("usr/share/misc/pci.ids", text.encode(errors="replace").decode())
    assert pci_ids.names([(1, 2)], root=host.root).keys() == {(1, 2)}


def test_sandbox_of_a_pid_is_found_by_its_monitor(tmp_path: Path) -> None:
    host = FakeSysfs(str(tmp_path))
    host.write("proc/42/stat", "42 (qemu) system) S 40 1 1\n")
    of = inventory.sandboxes({"web": 40, "other": 41}, root=host.root)
    assert (of(42), of(43)) == ("web", "")


def test_verb_prints_text_and_json(host: FakeSysfs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host.write(f"sys/bus/pci/devices/{A}/reset_method", "bus\n")
    host.write("usr/share/misc/pci.ids", TABLE)
    configuration = Settings(root=str(tmp_path / "state"), log=Log(), config_path=None, debug=False)
    assert devices.run(Namespace(json=True), configuration, root=host.root) == 0
    [group] = json.loads(capsys.readouterr().out)
    assert (group["group"], group["node"], group["can_be_passed"]) == (7, "/dev/vfio/7", True)
    assert group["functions"][0]["reset_methods"] == ["bus"]
    assert devices.run(Namespace(json=False), configuration, root=host.root) == 0
    assert capsys.readouterr().out.splitlines() == [
        "group 7  /dev/vfio/7  can be passed",
        f"  {A}  Intel Corporation 82574L Gigabit Network Connection",
        "      vfio-pci, reset: bus (!)",
    ]
