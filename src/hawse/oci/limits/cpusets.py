"""Lists of CPUs and memory nodes (linux.resources.cpu.cpus and mems) in the kernel's format. Pure.

The format is defined by bitmap_parselist() (Linux lib/bitmap.c, Documentation/admin-guide/kernel-parameters.rst):
numbers, ranges, ranges with a stride ("0-31:1/2"), "N" for the last number, "all".
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from hawse.errors import ConfigError

_NUMBER = "[0-9]{1,20}|N"
_RANGE = re.compile(f"({_NUMBER})(?:-({_NUMBER})(?::([0-9]{{1,20}})/([0-9]{{1,20}}))?)?")
#: The field names and what their lists contain.
_KINDS = {"cpus": "CPU", "mems": "memory node"}


def check(name: str, field: str, text: str, *, last: int) -> frozenset[int]:
    """Parse the list ``text`` of the field ``field`` ("cpus" or "mems"), and check it against the host.

    ``name`` names the resources in errors, and ``last`` is the host's greatest number of that kind. Raises
    :class:`ConfigError` for an invalid or empty list, and for numbers that the host does not have. A long range needs
    no more memory than the host's numbers do.
    """
    where = f"{name}.cpu.{field}: {text[:80]!r}"
    try:
        numbers = parse(text, last=last)
    except ValueError:
        raise ConfigError(f"{where} is not a list of {_KINDS[field]}s", hint="write it as 0-3,8") from None
    except IndexError:
        have = f"0 to {last}" if last else "0 only"
        raise ConfigError(
            f"{where}: this host does not have all of them: its {_KINDS[field]}s are {have}",
            hint="use only these numbers",
        ) from None
    return numbers


def parse(text: str, *, last: int) -> frozenset[int]:
    """Parse a list of at least one number. Raises ValueError for other text, IndexError for a number above ``last``."""
    numbers: set[int] = set()
    for word in filter(None, re.split(r"[,\s]", text, flags=re.ASCII)):
        match = _RANGE.fullmatch("0-N" if word.lower() == "all" else word)
        if match is None:
            raise ValueError(word)
        begin, end, used, group = (last if part == "N" else int(part) for part in match.groups(match[1]))
        if match[3] is None:
            used = group = 1
        if begin > end or not 0 < used <= group:
            raise ValueError(word)
        if end > last:
            raise IndexError(word)
        numbers.update(number for number in range(begin, end + 1) if (number - begin) % group < used)
    if not numbers:
        raise ValueError(text)
    return frozenset(numbers)


def written(numbers: Iterable[int]) -> str:
    """Format numbers as the kernel does: "0-3,8"."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ",".join(str(begin) if begin == end else f"{begin}-{end}" for begin, end in ranges)


def together(own: str, lists: Iterable[str], *, last: int) -> str:
    """The list for a pod's virtual machine: the union of its containers' lists.

    It is ``own``, the sandbox's list, if there are no lists, or if one of the containers has no list and so may use
    everything that the sandbox may. A list that only the kernel can parse counts as missing.
    """
    union: set[int] = set()
    for text in lists:
        if not text:
            return own
        try:
            union |= parse(text, last=last)
        except (ValueError, IndexError):
            return own
    return written(union) or own
