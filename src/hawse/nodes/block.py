"""Block devices of the host: what sysfs says of one, and a descriptor of it, both by its number.

A path is no proof: whoever can write to the directory decides what is there.
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

#: The guest's page: its kernel has no buffers for larger sectors.
_MOST_BYTES = 4096
#: The largest that QEMU takes for a physical sector (hw/block/block.c, MAX_BLOCK_SIZE).
_MOST_PHYSICAL = 2 * 1024 * 1024


@dataclass(frozen=True)
class BlockDevice:
    """A disk, a partition, a loop or device-mapper device; ``logical`` and ``physical`` are bytes of a sector."""

    major: int
    minor: int
    name: str
    readonly: bool
    logical: int
    physical: int


def read(major: int, minor: int, *, root: str = "") -> BlockDevice:
    """The device of this number. Raises :class:`DeviceError` for one that does not exist or cannot be passed."""
    directory = f"{root}/sys/dev/block/{major}:{minor}"
    name = os.path.basename(os.path.realpath(directory))
    if not os.path.isdir(directory):
        raise DeviceError(
            f"no block device of the host is {major}:{minor}", hint="correct major and minor: `lsblk` lists them"
        )
    if not _number(f"{directory}/size"):
        raise DeviceError(
            f"{name} ({major}:{minor}) has no content: its size is 0",
            hint="attach a file to a loop device, or insert a medium, before the container is created",
        )
    # A partition has no queue of its own.
    queue = f"{directory}/queue" if os.path.isdir(f"{directory}/queue") else f"{os.path.realpath(directory)}/../queue"
    logical = _number(f"{queue}/logical_block_size") or 512
    if logical > _MOST_BYTES:
        raise DeviceError(
            f"{name} ({major}:{minor}) has sectors of {logical} bytes, and a guest takes {_MOST_BYTES} at most",
            hint="use another device",
        )
    if _text(f"{queue}/zoned") == "host-managed":
        raise DeviceError(
            f"{name} ({major}:{minor}) is a zoned device, which would be an ordinary one in the guest",
            hint="use another device",
        )
    physical = min(max(_number(f"{queue}/physical_block_size"), logical), _MOST_PHYSICAL)
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
        f"{device.name} ({device.major}:{device.minor}) is not among the devices that this host allows",
        hint=f'an administrator allows it by devices.allow in the configuration: "{BLOCK}{device.name}"',
    )


def open_device(
    major: int, minor: int, *, writable: bool, private: Callable[[], int] = mounts.private_directory
) -> int:
    """A descriptor of the device, by a node in a directory that nobody else can see. Raises OSError.

    Past the host's page cache: from 9.1 on QEMU takes a descriptor only if it was opened as QEMU would open the device
    (monitor/fds.c, monitor_fdset_dup_fd_add()).
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
