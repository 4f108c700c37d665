"""Patterns of PCI functions and of paths, as the configuration has them. Pure.

A pattern is that of a PCI address (``0000:3b:*``, ``3b:00.0``), of vendor and device in hexadecimal (``8086:10d3``,
``10de:*``), or ``driver:`` and that of a driver's name. ``*``, ``?`` and ``[...]`` are fnmatch's. A pattern that
begins with ``block:`` is that of a block device's name on the host (``block:sdb``, ``block:dm-*``), and of no function.
"""

from __future__ import annotations

import os
import re
from fnmatch import fnmatchcase

_DRIVER = "driver:"
BLOCK = "block:"
#: A digit of an address, or what stands for some.
_DIGIT = r"(?:[0-9a-f?]|\[!?[0-9a-f-]+\])"
#: Of vendor and device, and of an address, whose domain may be left out, as lspci does.
_IDENTITY = re.compile(rf"(?:{_DIGIT}{{4}}|{_DIGIT}*\*):(?:{_DIGIT}{{4}}|{_DIGIT}*\*)")
_ADDRESS = re.compile(
    rf"(?P<domain>(?:{_DIGIT}{{4,8}}|{_DIGIT}*\*):)?(?:{_DIGIT}{{2}}|{_DIGIT}*\*):"
    rf"(?:{_DIGIT}{{2}}\.(?:{_DIGIT}|\*)|{_DIGIT}*\*(?:\.(?:{_DIGIT}|\*))?)"
)


def is_pattern(text: str) -> bool:
    """Whether it is one that can match something."""
    pattern = text.lower()
    if pattern.startswith(_DRIVER):
        return bool(re.fullmatch(r"[\w*?\[\]!-]+", pattern.removeprefix(_DRIVER)))
    if pattern.startswith(BLOCK):
        return bool(re.fullmatch(r"[\w*?\[\]!.-]+", pattern.removeprefix(BLOCK)))
    return pattern == "*" or bool(_IDENTITY.fullmatch(pattern) or _ADDRESS.fullmatch(pattern))


def matches(text: str, *, address: str, identity: str, driver: str) -> bool:
    """Whether the pattern is of a function with this address, this vendor and device, and this driver."""
    pattern = text.lower()
    if pattern == "*":
        return True
    if pattern.startswith(BLOCK):
        return False
    if pattern.startswith(_DRIVER):
        return fnmatchcase(driver.lower(), pattern.removeprefix(_DRIVER))
    if _IDENTITY.fullmatch(pattern):
        return fnmatchcase(identity, pattern)
    found = _ADDRESS.fullmatch(pattern)
    return found is not None and fnmatchcase(address, pattern if found["domain"] else f"0000:{pattern}")


def is_path_pattern(text: str) -> bool:
    """Whether it is an absolute path without "." and "..", each part of which may be a pattern of fnmatch."""
    return text.startswith("/") and not text.startswith("//") and text != "/" and os.path.normpath(text) == text


def matches_path(path: str, pattern: str) -> bool:
    """Whether the pattern is of a path. A wildcard stands for nothing that has a slash."""
    parts, patterns = path.split("/"), pattern.split("/")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))
