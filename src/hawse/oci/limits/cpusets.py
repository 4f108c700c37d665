"""Lists of CPUs and of memory nodes: linux.resources.cpu.cpus and mems, as the kernel reads and writes them. Pure.

The format is that of bitmap_parselist() (Linux lib/bitmap.c, Documentation/admin-guide/kernel-parameters.rst): numbers,
ranges, ranges with a stride ("0-31:1/2"), "N" for the last number, "all".
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from hawse.errors import ConfigError

_NUMBER = "[0-9]{1,20}|N"
_RANGE = re.compile(f"({_NUMBER})(?:-({_NUMBER})(?::([0-9]{{1,20}})/([0-9]{{1,20}}))?)?")
#: Of both kinds of lists.
_KINDS = {"cpus": "CPU", "mems": "memory node"}


def check(name: str, field: str, text: str, *, last: int) -> frozenset[int]:
    """The numbers of the list. ``field`` is "cpus" or "mems", of the resources that are called ``name``, and ``last``
    the host's greatest number of that kind.

    Raises :class:`ConfigError` for what is no list, for an empty one, and for numbers that the host does not have. No
    more memory is used for a range than for the host's numbers.
    """
    where = f"{name}.cpu.{field}: {text[:80]!r}"
    try:
        numbers = parse(text, last=last)
    except ValueError:
        raise ConfigError(f"{where} is no list of {_KINDS[field]}s", hint="write it as 0-3,8") from None
    except IndexError:
        have = f"0 to {last}" if last else "0 only"
        raise ConfigError(
            f"{where}: this host does not have all of these: its {_KINDS[field]}s are {have}",
            hint="name those that it has",
        ) from None
    return numbers


def parse(text: str, *, last: int) -> frozenset[int]:
    """The numbers of a list of one at least. Raises ValueError for what is none, IndexError for one beyond ``last``."""
    found: set[int] = set()
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
        found.update(number for number in range(begin, end + 1) if (number - begin) % group < used)
    if not found:
        raise ValueError(text)
    return frozenset(found)


def written(numbers: Iterable[int]) -> str:
    """The list of the numbers, as short as the kernel writes it: "0-3,8"."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ",".join(str(begin) if begin == end else f"{begin}-{end}" for begin, end in ranges)


def together(own: str, lists: Iterable[str], *, last: int) -> str:
    """The list of a pod's virtual machine: the numbers of its containers' lists together, ``own`` where there are none,
    and where one of the containers has no list: it may use whatever its sandbox may. A list that only the kernel can
    read counts as none."""
    found: set[int] = set()
    for text in lists:
        if not text:
            return own
        try:
            found |= parse(text, last=last)
        except (ValueError, IndexError):
            return own
    return written(found) or own
