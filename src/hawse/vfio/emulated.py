"""Emulated groups: the configuration declares, for example, that group 5 is a device model of QEMU.

Everything from the guest's PCI bus upward then works as with a device of the host, but the host needs neither an IOMMU
nor the device.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hawse.errors import ConfigError
from hawse.vfio import sysfs
from hawse.vfio.rule_numbers import is_dynamic

#: The models of QEMU 7.2 or 10.0 that were tested with vfio-pci in a guest; True for a model with an I/O BAR.
MODELS = {"edu": False, "e1000e": True, "e1000": True, "igb": True, "nvme": False, "pci-testdev": True}
_MAX_FUNCTIONS = 8
_PATH = re.compile(r"/dev/vfio/(devices/vfio)?(\d{1,9})")
#: The names of VFIO's majors in /proc/devices (Linux drivers/vfio/group.c, device_cdev.c).
_MAJORS = ("vfio", "vfio-cdev")


@dataclass(frozen=True)
class EmulatedGroup:
    """A group's number, and the QEMU model of each of its functions."""

    number: int
    models: tuple[str, ...]


def read_table(table: Mapping[str, Sequence[str]]) -> dict[int, EmulatedGroup]:
    """Parse the section [emulated] of the configuration. Raises :class:`ConfigError` naming the entry."""
    groups = {}
    for key, models in table.items():
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            raise ConfigError(
                f"configuration: emulated.{key[:40]}: the key is not a group number", hint='write it as 5 = ["edu"]'
            )
        if not 1 <= len(models) <= _MAX_FUNCTIONS:
            raise ConfigError(
                f"configuration: emulated.{key}: {len(models)} functions: a group has 1 to {_MAX_FUNCTIONS}",
                hint="name one model for each function",
            )
        for model in models:
            if model not in MODELS:
                raise ConfigError(
                    f"configuration: emulated.{key}: unknown model {model[:40]!r}", hint=f"known: {', '.join(MODELS)}"
                )
        groups[int(key)] = EmulatedGroup(int(key), tuple(models))
    return groups


def find(
    path: str, major: int, minor: int, emulated: Mapping[int, EmulatedGroup], *, root: str = ""
) -> tuple[int, bool] | None:
    """The emulated group of a node of a specification: its number, and whether the node is its device file.

    A node at the path of an emulated group belongs to that group, regardless of its numbers. A node at any other path
    belongs to it if it has the numbers of the host's node at such a path, which an engine has read; or if its minor is
    the group's number, and its major is VFIO's or unused on the host.
    """
    named = _PATH.fullmatch(path)
    if named and int(named[2]) in emulated:
        return int(named[2]), bool(named[1])
    known = re.fullmatch(r"vfio/(\d+)", sysfs.character_device(major, minor, root=root))
    if known and int(known[1]) in emulated:
        return int(known[1]), False
    for number in emulated:
        for is_file, node in ((False, f"/dev/vfio/{number}"), (True, f"/dev/vfio/devices/vfio{number}")):
            if _numbers(f"{root}{node}") == (major, minor):
                return number, is_file
    free = is_dynamic(major) and not sysfs.character_device(major, minor, root=root)
    if minor in emulated and free and _driver(major, root) in ("", *_MAJORS):
        return minor, os.path.basename(path) == f"vfio{minor}"
    return None


def _numbers(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return (os.major(status.st_rdev), os.minor(status.st_rdev)) if stat.S_ISCHR(status.st_mode) else None


def _driver(major: int, root: str) -> str:
    """The driver of a character device major on the host, "" for none (proc(5), /proc/devices)."""
    try:
        with open(f"{root}/proc/devices", encoding="utf-8", errors="surrogateescape") as file:
            characters = file.read().partition("Block devices:")[0]
    except OSError:
        return ""
    names = (line.split()[1] for line in characters.splitlines() if line.split()[:1] == [str(major)])
    return next(names, "")
