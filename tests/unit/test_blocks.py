"""Block and character devices as the host's sysfs shows them, and opening a block device by its number."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hawse.errors import DeviceError
from hawse.nodes import block, character
from hawse.nodes.block import BlockDevice
from hawse.nodes.character import CharacterDevice
from tests.support.sysfs import FakeSysfs

DISK = {"size": "2048\n", "ro": "0\n", "queue/logical_block_size": "512\n", "queue/physical_block_size": "4096\n"}


@pytest.fixture
def host(tmp_path: Path) -> FakeSysfs:
    return FakeSysfs(str(tmp_path))


def disk(host: FakeSysfs, numbers: str = "8:16", path: str = "virtual/block/sdb", **files: str) -> None:
    for name, text in (DISK | {key.replace("__", "/"): value for key, value in files.items()}).items():
        host.write(f"sys/devices/{path}/{name}", text)
    host.link(f"sys/dev/block/{numbers}", f"../../devices/{path}")


def test_disk_is_read_from_sysfs(host: FakeSysfs) -> None:
    disk(host)
    assert block.read(8, 16, root=host.root) == BlockDevice(8, 16, "sdb", False, 512, 4096)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"ro": "1\n"}, (True, 512, 4096)),
        ({"queue__logical_block_size": "4096\n"}, (False, 4096, 4096)),
        ({"queue__physical_block_size": "0\n"}, (False, 512, 512)),
        ({"queue__physical_block_size": "16777216\n"}, (False, 512, 2097152)),
        ({"queue__logical_block_size": "", "queue__physical_block_size": ""}, (False, 512, 512)),
        ({"queue__zoned": "none\n"}, (False, 512, 4096)),
        ({"queue__zoned": "host-aware\n"}, (False, 512, 4096)),
    ],
)
def test_sector_sizes_and_read_only_flag(
    host: FakeSysfs, files: dict[str, str], expected: tuple[bool, int, int]
) -> None:
    disk(host, **files)
    device = block.read(8, 16, root=host.root)
    assert (device.readonly, device.logical, device.physical) == expected


def test_partition_has_the_sector_sizes_of_its_disk(host: FakeSysfs) -> None:
    disk(host, queue__logical_block_size="4096\n")
    host.write("sys/devices/virtual/block/sdb/sdb1/size", "1024\n")
    host.write("sys/devices/virtual/block/sdb/sdb1/ro", "1\n")
    host.link("sys/dev/block/8:17", "../../devices/virtual/block/sdb/sdb1")
    assert block.read(8, 17, root=host.root) == BlockDevice(8, 17, "sdb1", True, 4096, 4096)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"size": "0\n"}, r"^sdb \(8:16\) is empty: its size is 0"),
        (
            {"queue__logical_block_size": "16384\n"},
            r"^sdb \(8:16\) has sectors of 16384 bytes, but a guest supports at most 4096",
        ),
        ({"queue__zoned": "host-managed\n"}, r"^sdb \(8:16\) is a host-managed zoned device"),
    ],
)
def test_unsupported_device_is_refused(host: FakeSysfs, files: dict[str, str], words: str) -> None:
    disk(host, **files)
    with pytest.raises(DeviceError, match=words) as caught:
        block.read(8, 16, root=host.root)
    assert caught.value.hint


def test_unused_number_is_refused(host: FakeSysfs) -> None:
    with pytest.raises(DeviceError, match="the host has no block device 8:32"):
        block.read(8, 32, root=host.root)


@pytest.mark.parametrize(
    ("patterns", "allowed"),
    [
        (["*"], True),
        (["8086:*", "block:sdb"], True),
        (["BLOCK:SD*"], True),
        (["block:sd[a-c]"], True),
        ([], False),
        (["8086:*"], False),
        (["driver:*"], False),
        (["block:sda"], False),
        (["block:dm-*"], False),
        (["sdb"], False),
    ],
)
def test_devices_allow_limits_block_devices(patterns: list[str], allowed: bool) -> None:
    device = BlockDevice(8, 16, "sdb", False, 512, 512)
    if allowed:
        block.check_allowed(device, patterns)
        return
    with pytest.raises(DeviceError, match=r"sdb \(8:16\) is not in the list of allowed devices") as caught:
        block.check_allowed(device, patterns)
    assert '"block:sdb"' in caught.value.hint


def test_device_is_opened_by_its_number_without_a_leak() -> None:
    """The number belongs to no driver: the node is created and opened, and the kernel reports a missing device."""
    before = set(os.listdir("/proc/self/fd"))
    for writable in (True, False):
        with pytest.raises(OSError, match=r"No such device or address|Operation not permitted"):
            block.open_device(4095, 1, writable=writable)
    assert set(os.listdir("/proc/self/fd")) == before


PLACE = "pci0000:00/0000:00:01.0/0000:3b:00.0/infiniband_verbs/uverbs0"


def test_character_device_of_a_pci_function(host: FakeSysfs) -> None:
    host.write(f"sys/devices/{PLACE}/dev", "231:192\n")
    host.link(f"sys/devices/{PLACE}/subsystem", "../../class/infiniband_verbs")
    host.link("sys/devices/pci0000:00/0000:00:01.0/0000:3b:00.0/driver", "../../bus/pci/drivers/mlx5_core")
    host.character_device(231, 192, f"../../devices/{PLACE}")
    device = character.read(231, 192, root=host.root)
    assert device == CharacterDevice("uverbs0", "mlx5_core", "0000:3b:00.0", misc=False)


def test_misc_device_is_recognized(host: FakeSysfs) -> None:
    host.write("sys/devices/virtual/misc/userfaultfd/dev", "10:126\n")
    host.link("sys/devices/virtual/misc/userfaultfd/subsystem", "../../../../class/misc")
    host.character_device(10, 126, "../../devices/virtual/misc/userfaultfd")
    assert character.read(10, 126, root=host.root) == CharacterDevice("userfaultfd", "misc", misc=True)


@pytest.mark.parametrize(("major", "driver"), [(195, "nvidia-frontend"), (4, "vc/0"), (8, ""), (1, "mem"), (95, "")])
def test_driver_that_is_not_in_sysfs_is_found_by_its_major_number(host: FakeSysfs, major: int, driver: str) -> None:
    host.write(
        "proc/devices",
        "Character devices:\n  1 mem\n  4 /dev/vc/0\n  4 tty\n195 nvidia-frontend\n\nBlock devices:\n  8 sd\n",
    )
    assert character.read(major, 0, root=host.root) == CharacterDevice(driver=driver)


def test_host_without_proc_devices(host: FakeSysfs) -> None:
    assert character.read(1, 3, root=host.root) == CharacterDevice()
