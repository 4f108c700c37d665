"""Block devices of the host: read their attributes from sysfs and open them, in both cases by their numbers.

A path does not identify a device: anyone who can write to the directory can put another device at the path.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from hawse.errors import DeviceError
from hawse.linux import mounts
from hawse.patterns import BLOCK

#: The page size of the guest in bytes: its kernel has no buffers for larger sectors.
_MAX_LOGICAL = 4096
#: The largest physical sector that QEMU accepts, in bytes (hw/block/block.c, MAX_BLOCK_SIZE).
_MAX_PHYSICAL = 2 * 1024 * 1024


@dataclass(frozen=True)
class BlockDevice:
    """A disk, a partition, a loop or device-mapper device; ``logical`` and ``physical`` are sector sizes in bytes."""

    major: int
    minor: int
    name: str
    readonly: bool
    logical: int
    physical: int


def read(major: int, minor: int, *, root: str = "") -> BlockDevice:
    """The device with this number. Raises :class:`DeviceError` if it does not exist or cannot be passed."""
    directory = f"{root}/sys/dev/block/{major}:{minor}"
    name = os.path.basename(os.path.realpath(directory))
    if not os.path.isdir(directory):
        raise DeviceError(
            f"the host has no block device {major}:{minor}", hint="correct major and minor: `lsblk` lists them"
        )
    if not _number(f"{directory}/size"):
        raise DeviceError(
            f"{name} ({major}:{minor}) is empty: its size is 0",
            hint="attach a file to a loop device, or insert a medium, before the container is created",
        )
    # The attributes of the queue are in the directory of the disk, not of its partitions.
    queue = f"{directory}/queue" if os.path.isdir(f"{directory}/queue") else f"{os.path.realpath(directory)}/../queue"
    logical = _number(f"{queue}/logical_block_size") or 512
    if logical > _MAX_LOGICAL:
        raise DeviceError(
            f"{name} ({major}:{minor}) has sectors of {logical} bytes, but a guest supports at most {_MAX_LOGICAL}",
            hint="use another device",
        )
    if _text(f"{queue}/zoned") == "host-managed":
        raise DeviceError(
            f"{name} ({major}:{minor}) is a host-managed zoned device, but the guest would see an ordinary disk",
            hint="use another device",
        )
    physical = min(max(_number(f"{queue}/physical_block_size"), logical), _MAX_PHYSICAL)
    return BlockDevice(major, minor, name, _text(f"{directory}/ro") == "1", logical, physical)


def check_allowed(device: BlockDevice, patterns: Sequence[str]) -> None:
    """Raise :class:`DeviceError` for a device that no pattern of ``devices.allow`` matches."""
    for pattern in patterns:
        if pattern == "*":
            return
        name = pattern.lower().removeprefix(BLOCK)
        if name != pattern.lower() and fnmatchcase(device.name.lower(), name):
            return
    raise DeviceError(
        f"{device.name} ({device.major}:{device.minor}) is not in the list of allowed devices",
        hint=f'an administrator can add "{BLOCK}{device.name}" to devices.allow in the configuration',
    )


def open_device(
    major: int, minor: int, *, writable: bool, private: Callable[[], int] = mounts.private_directory
) -> int:
    """Open the device through a new node in a private directory. Returns a file descriptor; raises OSError.

    The flags include O_DIRECT, which bypasses the host's page cache: QEMU from 9.1 on accepts a descriptor only if it
    was opened with the flags with which QEMU would open the device (monitor/fds.c, monitor_fdset_dup_fd_add()).
    """
    directory = private()
    try:
        os.mknod("device", stat.S_IFBLK | 0o600, os.makedev(major, minor), dir_fd=directory)
        mode = os.O_RDWR if writable else os.O_RDONLY
        return os.open("device", mode | os.O_DIRECT | os.O_CLOEXEC, dir_fd=directory)
    finally:
        os.close(directory)


def _number(path: str) -> int:
    text = _text(path)
    return int(text) if text.isdigit() else 0


def _text(path: str) -> str:
    try:
        with open(path) as file:
            return file.read(64).strip()
    except OSError:
        return ""
