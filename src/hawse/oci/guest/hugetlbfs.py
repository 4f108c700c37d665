"""Huge pages: the limits and counts that a specification sets, and the hugetlbfs file systems that it mounts.

A hugetlbfs of the host cannot be shared: its files are pages of the host. The guest mounts its own hugetlbfs instead.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

import msgspec

from hawse.errors import ConfigError
from hawse.json_text import Document
from hawse.linux import mountinfo
from hawse.oci.types import HugepageLimit

_UNITS = {"KB": 1, "MB": 1024, "GB": 1024 * 1024}
#: The page size of a mount without the option pagesize (on x86: the size that an entry of a page middle directory
#: maps).
DEFAULT_KIB = 2048


class Hugetlbfs(msgspec.Struct, frozen=True):
    """A directory of a file system of huge pages: KiB of a page, mode and owners."""

    kib: int
    mode: int
    uid: int
    gid: int


def hugetlbfs(source: str) -> Hugetlbfs | None:
    """The hugetlbfs that contains this path of the host; None if the path is in another file system.

    Raises :class:`ConfigError` for a file in a hugetlbfs.
    """
    try:
        status = os.stat(source)
    except OSError:
        return None  # the code that opens it reports the error
    if not is_hugetlbfs(mountinfo.read_text(), os.major(status.st_dev), os.minor(status.st_dev)):
        return None
    if not stat.S_ISDIR(status.st_mode):
        raise ConfigError(
            f"{source} is a file of the host's huge pages, which cannot be shared with a virtual machine",
            hint="bind its directory instead",
        )
    # Block size and page size are the same (Linux fs/hugetlbfs/inode.c, hugetlbfs_statfs()).
    return Hugetlbfs(os.statvfs(source).f_bsize // 1024, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)


def is_hugetlbfs(table: str, major: int, minor: int) -> bool:
    """Whether a file's device number (st_dev) is that of a hugetlbfs in the text of /proc/self/mountinfo (proc(5)).

    The device number also identifies directories below a mount, bind mounts and symbolic links; a path would not.
    """
    for line in table.split("\n"):
        fields, _, rest = line.partition(" - ")
        words = fields.split(" ")
        if len(words) > 2 and words[2] == f"{major}:{minor}":
            return rest.split(" ")[0] == "hugetlbfs"
    return False


def page_kib(size: str) -> int:
    """Parse a page size such as 2MB or 1GB; returns KiB. Raises ValueError."""
    number, unit = size[:-2], size[-2:]
    if not (number.isascii() and number.isdigit() and len(number) < 8 and unit in _UNITS and int(number)):
        raise ValueError(size)
    return int(number) * _UNITS[unit]


def limits_of(name: str, limits: Sequence[HugepageLimit]) -> dict[int, int]:
    """Convert linux.resources.hugepageLimits of the document ``name`` to counts of pages by page size in KiB.

    0 is a valid limit. Raises :class:`ConfigError`.
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
    """Parse counts such as 2MB:512,1GB:2 to counts by page size in KiB. Raises :class:`ConfigError` naming ``name``."""
    pages = {}
    for word in filter(None, (word.strip() for word in text.split(","))):
        size, _, count = word.partition(":")
        try:
            kib = page_kib(size)
            if not (count.isascii() and count.isdigit() and len(count) < 8):
                raise ValueError(count)
        except ValueError:
            raise ConfigError(f"{name}: {word[:40]!r} is not a number of huge pages", hint="write 2MB:512") from None
        pages[kib] = int(count)
    return pages


def mounted_kib(mount: Document) -> int:
    """The page size in KiB of a mount of type hugetlbfs; 0 for other types and for an invalid size."""
    if mount.get("type") != "hugetlbfs":
        return 0
    for option in mount.get("options") or ():
        key, _, value = option.partition("=")
        if key == "pagesize":
            try:  # memparse()'s format (Linux lib/cmdline.c); the kernel refuses an invalid size
                return page_kib(f"{value[:-1]}{value[-1:].upper()}B")
            except ValueError:
                return 0
    return DEFAULT_KIB
