"""Snapshots of everything that a sandbox could leave behind on a host, to compare before and after."""

from __future__ import annotations

import os
import re

from tests.support.patience import wait_until
from tests.support.processes import all_pids, command_line, holders

#: Command lines of processes that belong to sandboxes.
_PROGRAMS = re.compile(r"qemu-system|virtiofsd|hawse\.(sandbox|container)|^hawse\[")


def _is_ours(cgroup: str) -> bool:
    """Whether a sandbox created the cgroup; sandboxes of other tests use the control cgroup too."""
    return "hawse" in cgroup and not cgroup.endswith("/hawse.control")


def snapshot() -> dict[str, set[str]]:
    """Processes, mounts, cgroups, open VFIO groups, driver links and overrides of PCI functions."""
    return {
        "processes": _processes(),
        "mounts": _lines("/proc/self/mounts"),
        "cgroups": {directory for directory, _, _ in os.walk("/sys/fs/cgroup") if _is_ours(directory)},
        "open groups": _open_groups(),
        "drivers": _drivers(),
    }


def difference(before: dict[str, set[str]], after: dict[str, set[str]]) -> dict[str, set[str]]:
    """The differing entries by kind; empty if there are none. `+` marks entries left behind, `-` entries that are gone.

    The causes differ. An entry that is gone was in ``before``: something was removed that should have
    remained, or ``before`` was taken while something was still ending.
    """
    return {
        kind: {f"+{entry}" for entry in after[kind] - before[kind]}
        | {f"-{entry}" for entry in before[kind] - after[kind]}
        for kind in before
        if before[kind] != after[kind]
    }


def prove_unchanged(before: dict[str, set[str]], *, seconds: float = 15) -> None:
    """Raise AssertionError with the difference unless it disappears soon: PID 1 collects orphans with a delay.

    ``seconds`` is passed to :func:`patience`.
    """
    wait_until(
        lambda: not difference(before, snapshot()),
        seconds=seconds,
        what="nothing left behind (+) or gone (-)",
        seen=lambda: difference(before, snapshot()),
    )


def _processes() -> set[str]:
    lines = {pid: command_line(pid) for pid in all_pids()}
    return {f"{pid} {words[:200]}" for pid, words in lines.items() if _PROGRAMS.search(words)}


def _open_groups() -> set[str]:
    groups = holders(lambda target: target.startswith("/dev/vfio/"))
    return {f"{pid} {target}" for pid, targets in groups.items() for target in targets}


def _drivers() -> set[str]:
    drivers = set()
    devices = "/sys/bus/pci/devices"
    for address in os.listdir(devices) if os.path.isdir(devices) else ():
        link = f"{devices}/{address}/driver"
        driver = os.path.basename(os.readlink(link)) if os.path.islink(link) else ""
        override = "".join(_lines(f"{devices}/{address}/driver_override"))
        drivers.add(f"{address} {driver} {override}")
    return drivers


def _lines(path: str) -> set[str]:
    try:
        with open(path) as file:
            return set(file.read().splitlines())
    except OSError:
        return set()
