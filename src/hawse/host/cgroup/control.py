"""The cgroup /hawse.control: CPU time that does not depend on what a pod may have. Standard library only.

A pod without requests has the smallest weight (Kubernetes pkg/kubelet/cm/helpers_linux.go, MinShares), and its limit of
CPU time may be small. On a busy host the monitor in its cgroup could not answer for tens of seconds, and QEMU could
neither end a container nor be ended. All monitors of a host are in this cgroup, with the weight of one cgroup beside
system.slice. The programs of a sandbox are moved there while somebody waits for an end.

Of version 1 of the cgroups only the hierarchy with the controller cpu is concerned. In version 2 a process has one
cgroup: what it has allocated stays charged to the one that it came from (cgroup-v2.rst, "Memory Ownership").
"""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress

from hawse.host.cgroup.sandbox_cgroup import hierarchies

TYPE_CHECKING = False  # typing's import would cost a hot verb a tenth of its time
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from hawse.host.cgroup.sandbox_cgroup import Hierarchy
    from hawse.linux.processes import Process

#: No cgroupsPath is likely to be this one, or to lie below it.
NAME = "hawse.control"
#: A file of the sandbox's directory with the paths of the cgroup, a line each.
_RECORD = "control-cgroup"
#: Another sandbox's deletion may remove the directory before a process is in it.
_ATTEMPTS = 5
_RELEASES = 100


def places(mounted: Sequence[Hierarchy], path: str) -> list[tuple[str, str]]:
    """(the control cgroup, the sandbox's at ``path``) in each hierarchy that divides CPU time. Pure."""
    chosen = [hierarchy for hierarchy in mounted if "cpu" in hierarchy.controllers]
    chosen = chosen or [hierarchy for hierarchy in mounted if hierarchy.version == 2]
    return [(f"{hierarchy.mount}/{NAME}", f"{hierarchy.mount}{path}") for hierarchy in chosen] if path else []


class ControlCgroup:
    """Seen from one sandbox, whose cgroup is at ``path``; with "" it has none, and nothing is moved."""

    def __init__(self, path: str, directory: str, *, mountinfo: str = "/proc/self/mountinfo") -> None:
        """``directory`` is the sandbox's, with the record."""
        self._directory = directory
        mounted = []
        if path:
            from hawse.linux.mountinfo import read_text  # here, since hot verbs load this module

            mounted = hierarchies(read_text(mountinfo))
        # A sandbox whose cgroup could not be made has been warned of, and has nothing to leave.
        self._places = [pair for pair in places(mounted, path) if os.path.isdir(pair[1])]

    @property
    def is_apart(self) -> bool:
        """Whether there is another cgroup than the sandbox's own to be in."""
        return bool(self._places)

    def enter(self, processes: Iterable[Process]) -> list[str]:
        """Move processes into it; what to warn of."""
        try:
            self._note()
        except OSError as error:
            return [f"the monitor stays in its sandbox's share of CPU time: {error.filename}: {error.strerror}"]
        return [
            f"the sandbox's share of CPU time limits its monitor, which cannot be in {control}: {reason} [stopping it "
            "may take long on a busy host: let hawse make that cgroup]"
            for control, _ in self._places
            for process in processes
            if (reason := _move_in(control, process))
        ]

    def _note(self) -> None:
        """Put the cgroup on record, for its removal."""
        if self._places and not os.path.exists(f"{self._directory}/{_RECORD}"):
            with open(f"{self._directory}/{_RECORD}", "w") as file:
                file.write("".join(f"{control}\n" for control, _ in self._places))

    def leave(self, processes: Iterable[Process]) -> None:
        """Move processes back into the sandbox's cgroup, unless that has gone."""
        for _, home in self._places:
            for process in processes:
                with suppress(OSError):
                    _move(home, process)


def hasten(directory: str, process: Process) -> None:
    """Move a process of a sandbox into the control cgroup, if the sandbox's record names one that exists."""
    for path in _recorded(directory):
        with suppress(OSError):
            _move(path, process)


def release(directory: str) -> None:
    """Remove the control cgroup if no sandbox is in it any more."""
    for path in _recorded(directory):
        for _ in range(_RELEASES):
            try:
                os.rmdir(path)
            except OSError as error:
                # The monitor has just ended; nothing tells when the kernel is done with it.
                if error.errno == errno.EBUSY and not _has_processes(path):
                    time.sleep(0.01)
                    continue
            break


def _move_in(control: str, process: Process) -> str:
    """Why it could not be moved, "" for success."""
    reason = ""
    for _ in range(_ATTEMPTS):
        try:
            with suppress(FileExistsError):
                os.mkdir(control, 0o755)
            _move(control, process)
        except OSError as error:
            reason = str(error.strerror)
            if error.errno in (errno.ENOENT, errno.ENODEV):  # ENODEV: it was open when it was removed
                continue
            return "" if error.errno == errno.ESRCH else reason
        return ""
    return reason


def _move(cgroup: str, process: Process) -> None:
    """Move a process that has not ended: a pid that is another's by now is not written."""
    if process.is_alive():
        with open(f"{cgroup}/cgroup.procs", "w") as file:
            file.write(str(process.pid))


def _has_processes(path: str) -> bool:
    try:
        with open(f"{path}/cgroup.procs") as file:
            return bool(file.read(1))
    except OSError:
        return False


def _recorded(directory: str) -> list[str]:
    try:
        with open(f"{directory}/{_RECORD}") as file:
            return file.read().splitlines()
    except OSError:
        return []
