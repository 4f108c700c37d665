"""Describe a character device of the host for error messages: its name, its driver, and its PCI function."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

_FUNCTION = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]")


@dataclass(frozen=True)
class CharacterDevice:
    """The kernel's name of a device, its driver, and the address of its PCI function; "" if the host does not show it.

    ``misc`` is true for a misc device.
    """

    name: str = ""
    driver: str = ""
    function: str = ""
    misc: bool = False


def read(major: int, minor: int, *, root: str = "") -> CharacterDevice:
    """The device with this number. Not all drivers appear in sysfs: the name of the major is the last resort."""
    link = f"{root}/sys/dev/char/{major}:{minor}"
    if not os.path.isdir(link):
        return CharacterDevice(driver=_major_name(major, root))
    path = os.path.realpath(link)
    functions = [part for part in path.split("/") if _FUNCTION.fullmatch(part)]
    subsystem = _linked(f"{path}/subsystem")
    return CharacterDevice(
        name=os.path.basename(path),
        driver=_driver(path) or subsystem or _major_name(major, root),
        function=functions[-1] if functions else "",
        misc=subsystem == "misc",
    )


def _driver(path: str) -> str:
    """The driver of the device, or of its nearest ancestor in sysfs that has one."""
    while path.count("/") > 2:
        if driver := _linked(f"{path}/driver"):
            return driver
        path = os.path.dirname(path)
    return ""


def _linked(path: str) -> str:
    try:
        return os.path.basename(os.readlink(path))
    except OSError:
        return ""


def _major_name(major: int, root: str) -> str:
    """The name of a major of character devices in /proc/devices (proc(5)), "" for none."""
    try:
        with open(f"{root}/proc/devices") as file:
            characters = file.read().partition("Block devices:")[0]
    except OSError:
        return ""
    match = re.search(rf"^ *{major} (\S+)$", characters, re.MULTILINE)
    return match[1].removeprefix("/dev/") if match else ""
