"""Patterns of PCI functions, block devices and paths in the configuration. Pure.

A pattern of functions matches a PCI address (``0000:3b:*``, ``3b:00.0``), the vendor and device in hexadecimal
(``8086:10d3``, ``10de:*``), or after ``driver:`` the name of a driver. A pattern that begins with ``block:`` matches
only the name of a block device on the host (``block:sdb``, ``block:dm-*``). The wildcards ``*``, ``?`` and ``[...]``
are those of fnmatch.
"""

from __future__ import annotations

import os
import re
from fnmatch import fnmatchcase

_DRIVER = "driver:"
BLOCK = "block:"
#: A digit of an address, or a wildcard for digits.
_DIGIT = r"(?:[0-9a-f?]|\[!?[0-9a-f-]+\])"
#: Patterns of vendor and device, and of an address. Its domain may be left out, as in lspci.
_IDENTITY = re.compile(rf"(?:{_DIGIT}{{4}}|{_DIGIT}*\*):(?:{_DIGIT}{{4}}|{_DIGIT}*\*)")
_ADDRESS = re.compile(
    rf"(?P<domain>(?:{_DIGIT}{{4,8}}|{_DIGIT}*\*):)?(?:{_DIGIT}{{2}}|{_DIGIT}*\*):"
    rf"(?:{_DIGIT}{{2}}\.(?:{_DIGIT}|\*)|{_DIGIT}*\*(?:\.(?:{_DIGIT}|\*))?)"
)


def is_pattern(text: str) -> bool:
    """Whether a text is a valid pattern."""
    pattern = text.lower()
    if pattern.startswith(_DRIVER):
        return bool(re.fullmatch(r"[\w*?\[\]!-]+", pattern.removeprefix(_DRIVER)))
    if pattern.startswith(BLOCK):
        return bool(re.fullmatch(r"[\w*?\[\]!.-]+", pattern.removeprefix(BLOCK)))
    return pattern == "*" or bool(_IDENTITY.fullmatch(pattern) or _ADDRESS.fullmatch(pattern))


def matches(text: str, *, address: str, identity: str, driver: str) -> bool:
    """Whether the pattern matches a function with this address, this vendor and device, and this driver."""
    pattern = text.lower()
    if pattern == "*":
        return True
    if pattern.startswith(BLOCK):
        return False
    if pattern.startswith(_DRIVER):
        return fnmatchcase(driver.lower(), pattern.removeprefix(_DRIVER))
    if _IDENTITY.fullmatch(pattern):
        return fnmatchcase(identity, pattern)
    match = _ADDRESS.fullmatch(pattern)
    return match is not None and fnmatchcase(address, pattern if match["domain"] else f"0000:{pattern}")


def is_path_pattern(text: str) -> bool:
    """Whether a text is an absolute path without "." and "..", whose parts may contain wildcards of fnmatch."""
    return text.startswith("/") and not text.startswith("//") and text != "/" and os.path.normpath(text) == text


def matches_path(path: str, pattern: str) -> bool:
    """Whether the pattern matches a path. Wildcards do not match slashes."""
    parts, patterns = path.split("/"), pattern.split("/")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))
