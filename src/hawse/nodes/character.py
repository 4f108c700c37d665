"""What the host says of a character device, for errors: its name, its driver, and the PCI function behind it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

_FUNCTION = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]")


@dataclass(frozen=True)
class CharacterDevice:
    """``name`` is the kernel's, ``misc`` tells whether it is of the misc devices. "" is what the host does not say."""

    name: str = ""
    driver: str = ""
    function: str = ""
    misc: bool = False


def read(major: int, minor: int, *, root: str = "") -> CharacterDevice:
    """The device of this number. Not all drivers appear in sysfs: the name of the major number is the last resort."""
    link = f"{root}/sys/dev/char/{major}:{minor}"
    if not os.path.isdir(link):
        return CharacterDevice(driver=_of_major(major, root))
    path = os.path.realpath(link)
    functions = [part for part in path.split("/") if _FUNCTION.fullmatch(part)]
    subsystem = _linked(f"{path}/subsystem")
    return CharacterDevice(
        name=os.path.basename(path),
        driver=_driver(path) or subsystem or _of_major(major, root),
        function=functions[-1] if functions else "",
        misc=subsystem == "misc",
    )


def _driver(path: str) -> str:
    """That of the nearest device above."""
    while path.count("/") > 2:
        if found := _linked(f"{path}/driver"):
            return found
        path = os.path.dirname(path)
    return ""


def _linked(path: str) -> str:
    try:
        return os.path.basename(os.readlink(path))
    except OSError:
        return ""


def _of_major(major: int, root: str) -> str:
    """proc(5), /proc/devices."""
    try:
        with open(f"{root}/proc/devices") as file:
            characters = file.read().partition("Block devices:")[0]
    except OSError:
        return ""
    found = re.search(rf"^ *{major} (\S+)$", characters, re.MULTILINE)
    return found[1].removeprefix("/dev/") if found else ""
