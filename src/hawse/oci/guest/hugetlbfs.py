"""Huge pages: what a specification says of them, and file systems of them, which a virtual machine makes anew.

A hugetlbfs of the host cannot be shared: its files are pages of the host's. The guest has one of its own in its place.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import Any

import msgspec

from hawse.errors import ConfigError
from hawse.linux import mountinfo
from hawse.oci.types import HugepageLimit

_UNITS = {"KB": 1, "MB": 1024, "GB": 1024 * 1024}
#: What a mount without the option pagesize has (hugetlbfs(5) of x86: the size of a page table's entry above the last).
DEFAULT_KIB = 2048


class Hugetlbfs(msgspec.Struct, frozen=True):
    """A directory of a file system of huge pages: KiB of a page, mode and owners."""

    kib: int
    mode: int
    uid: int
    gid: int


def hugetlbfs(source: str) -> Hugetlbfs | None:
    """The file system of huge pages that the path of this host is in; None where it is in another.

    Raises :class:`ConfigError` for a file in one.
    """
    try:
        status = os.stat(source)
    except OSError:
        return None  # whoever uses it tells why
    if not is_hugetlbfs(mountinfo.read_text(), os.major(status.st_dev), os.minor(status.st_dev)):
        return None
    if not stat.S_ISDIR(status.st_mode):
        raise ConfigError(
            f"{source} is a file of huge pages, which are the host's own: a virtual machine cannot have them",
            hint="bind the directory in place of it",
        )
    # Block size and page size are the same (Linux fs/hugetlbfs/inode.c, hugetlbfs_statfs()).
    return Hugetlbfs(os.statvfs(source).f_bsize // 1024, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)


def is_hugetlbfs(table: str, major: int, minor: int) -> bool:
    """Whether the device of a file, as stat(2) has it, is a hugetlbfs, by the text of /proc/self/mountinfo (proc(5)).

    By the device, and not by the path: so directories below a mount are found, binds and symbolic links.
    """
    for line in table.split("\n"):
        fields, _, rest = line.partition(" - ")
        words = fields.split(" ")
        if len(words) > 2 and words[2] == f"{major}:{minor}":
            return rest.split(" ")[0] == "hugetlbfs"
    return False


def page_kib(size: str) -> int:
    """KiB of a page whose size is written as 2MB or 1GB. Raises ValueError."""
    number, unit = size[:-2], size[-2:]
    if not (number.isascii() and number.isdigit() and len(number) < 8 and unit in _UNITS and int(number)):
        raise ValueError(size)
    return int(number) * _UNITS[unit]


def limits_of(name: str, limits: Sequence[HugepageLimit]) -> dict[int, int]:
    """Pages by their KiB, of linux.resources.hugepageLimits of the configuration ``name``; 0 is a limit as well.

    Raises :class:`ConfigError`.
    """
    pages = {}
    for limit in limits:
        try:
            kib = page_kib(limit.page_size)
        except ValueError:
            raise ConfigError(
                f"{name}: linux.resources.hugepageLimits: pageSize {limit.page_size[:40]!r}",
                hint="write it as 2MB or 1GB",
            ) from None
        pages[kib] = limit.limit // (kib * 1024)
    return pages


def counts_of(name: str, text: str) -> dict[int, int]:
    """Pages by their KiB, written as 2MB:512,1GB:2 in what ``name`` says. Raises :class:`ConfigError`."""
    pages = {}
    for word in filter(None, (word.strip() for word in text.split(","))):
        size, _, count = word.partition(":")
        try:
            kib = page_kib(size)
            if not (count.isascii() and count.isdigit() and len(count) < 8):
                raise ValueError(count)
        except ValueError:
            raise ConfigError(f"{name}: {word[:40]!r} is no number of huge pages", hint="write 2MB:512") from None
        pages[kib] = int(count)
    return pages


def mounted_kib(mount: dict[str, Any]) -> int:
    """KiB of the pages of a mount of type hugetlbfs; 0 for one of another type, or with a size that is none."""
    if mount.get("type") != "hugetlbfs":
        return 0
    for option in mount.get("options") or ():
        key, _, value = option.partition("=")
        if key == "pagesize":
            try:  # as memparse() reads it (Linux lib/cmdline.c); the kernel refuses what is no size
                return page_kib(f"{value[:-1]}{value[-1:].upper()}B")
            except ValueError:
                return 0
    return DEFAULT_KIB
