"""The mounts of a process, read independently of the code under test (proc_pid_mountinfo(5))."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hawse.host.cgroup.sandbox_cgroup import Hierarchy, hierarchies


@dataclass(frozen=True)
class Entry:
    """One mount: its point, its options, its propagation (such as "shared"), the type, source and options of its file
    system."""

    point: str
    options: frozenset[str]
    propagation: tuple[str, ...]
    kind: str
    source: str
    file_system_options: frozenset[str]


def parse(text: str) -> list[Entry]:
    """Parse the text of a mountinfo file; other lines are skipped. Escapes in paths are kept."""
    entries = []
    for line in text.splitlines():
        fields, separator, rest = line.partition(" - ")
        if separator:
            point, options, *propagation = fields.split()[4:]
            kind, source, file_system = rest.split(" ")
            peers = tuple(word.split(":")[0] for word in propagation)
            entry = Entry(point, frozenset(options.split(",")), peers, kind, source, frozenset(file_system.split(",")))
            entries.append(entry)
    return entries


def mounts_of(pid: int | str = "self") -> list[Entry]:
    """The mounts of a process in their order: a later one covers an earlier one at the same point."""
    return parse(Path(f"/proc/{pid}/mountinfo").read_text())


def cgroup_hierarchies(*, version: int | None = None) -> list[Hierarchy]:
    """The cgroup hierarchies of this host, or those of one version."""
    all_hierarchies = hierarchies(Path("/proc/self/mountinfo").read_text())
    return [hierarchy for hierarchy in all_hierarchies if version in (None, hierarchy.version)]
