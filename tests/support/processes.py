"""The processes that a process has started, from /proc."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def children(pid: int) -> list[int]:
    """The children of a process. Raises OSError when it has ended."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def descendants(pid: int) -> Iterator[int]:
    """The descendants of a process, each one before its own children."""
    for child in children(pid):
        yield child
        yield from descendants(child)


def name_of(pid: int) -> str:
    """The name of a process, its first 15 characters."""
    return Path(f"/proc/{pid}/comm").read_text().strip()
