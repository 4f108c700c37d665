"""The cgroup /hawse.control: CPU time that is independent of the limits of a pod. Standard library only.

A pod without requests gets the smallest weight (Kubernetes pkg/kubelet/cm/helpers_linux.go, MinShares), and its limit
of CPU time may be small. On a busy host a monitor in the pod's cgroup might not answer for tens of seconds, and QEMU
could neither stop a container nor exit. So all monitors of a host run in this cgroup, a sibling of system.slice with
the weight of a single cgroup. The programs of a sandbox are moved there while a command waits for their end.

In cgroup version 1 only the hierarchy with the controller cpu is used. In version 2 a process is in one cgroup, and its
memory stays charged to the cgroup where it was allocated (cgroup-v2.rst, "Memory Ownership").
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

#: A name that is unlikely to be used in a cgroupsPath.
NAME = "hawse.control"
#: A file in the sandbox's directory with the paths of the cgroup, one per line.
_RECORD = "control-cgroup"
#: The deletion of another sandbox may remove the directory before a process is moved into it.
_ATTEMPTS = 5
_RELEASES = 100


def places(mounted: Sequence[Hierarchy], path: str) -> list[tuple[str, str]]:
    """Pairs of control cgroup and sandbox's cgroup at ``path``, in each hierarchy that divides CPU time. Pure."""
    chosen = [hierarchy for hierarchy in mounted if "cpu" in hierarchy.controllers]
    chosen = chosen or [hierarchy for hierarchy in mounted if hierarchy.version == 2]
    return [(f"{hierarchy.mount}/{NAME}", f"{hierarchy.mount}{path}") for hierarchy in chosen] if path else []


class ControlCgroup:
    """The control cgroup for one sandbox, whose cgroup is at ``path``. Without a path, nothing is moved."""

    def __init__(self, path: str, directory: str, *, mountinfo: str = "/proc/self/mountinfo") -> None:
        """``directory`` is the sandbox's state directory, which contains the record."""
        self._directory = directory
        mounted = []
        if path:
            from hawse.linux.mountinfo import read_text  # imported here, since hot verbs load this module

            mounted = hierarchies(read_text(mountinfo))
        # Without the sandbox's cgroup, nothing is moved: its creation failed, which was logged as a warning.
        self._places = [pair for pair in places(mounted, path) if os.path.isdir(pair[1])]

    @property
    def is_apart(self) -> bool:
        """Whether processes can be moved out of the sandbox's cgroup."""
        return bool(self._places)

    def enter(self, processes: Iterable[Process]) -> list[str]:
        """Move processes into it. Returns warnings."""
        try:
            self._note()
        except OSError as error:
            return [f"the sandbox's share of CPU time limits its monitor: {error.filename}: {error.strerror}"]
        return [
            f"the sandbox's share of CPU time limits its monitor, which cannot be moved to {control}: {reason} "
            "[stopping it may take long on a busy host: let hawse create that cgroup]"
            for control, _ in self._places
            for process in processes
            if (reason := _move_in(control, process))
        ]

    def _note(self) -> None:
        """Record the cgroup, so that it can be removed later."""
        if self._places and not os.path.exists(f"{self._directory}/{_RECORD}"):
            with open(f"{self._directory}/{_RECORD}", "w") as file:
                file.write("".join(f"{control}\n" for control, _ in self._places))

    def leave(self, processes: Iterable[Process]) -> None:
        """Move processes back into the sandbox's cgroup, if it still exists."""
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
    """Remove the control cgroup if it contains no process any more."""
    for path in _recorded(directory):
        for _ in range(_RELEASES):
            try:
                os.rmdir(path)
            except OSError as error:
                # The monitor has just ended; the kernel does not report when its exit is complete.
                if error.errno == errno.EBUSY and not _has_processes(path):
                    time.sleep(0.01)
                    continue
            break


def _move_in(control: str, process: Process) -> str:
    """Move a process into the control cgroup. Returns the reason if it cannot be moved, otherwise ""."""
    reason = ""
    for _ in range(_ATTEMPTS):
        try:
            with suppress(FileExistsError):
                os.mkdir(control, 0o755)
            _move(control, process)
        except OSError as error:
            reason = str(error.strerror)
            if error.errno in (errno.ENOENT, errno.ENODEV):  # ENODEV: removed while the file was open
                continue
            return "" if error.errno == errno.ESRCH else reason
        return ""
    return reason


def _move(cgroup: str, process: Process) -> None:
    """Move a process if it is alive: the pid of an ended process may belong to another one."""
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
