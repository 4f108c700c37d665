"""A container's cgroup in the guest: its processes, its usage, and the OOM kills in it.

The files are those of Linux Documentation/admin-guide/cgroup-v2.rst. The host parses their content.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable

from hawse.agent.system.pids import signal_each

ROOT = "/sys/fs/cgroup"
_SIGKILL = 9
#: Maximum bytes to read of a file. memory.stat, the largest, has about 1500 bytes; io.stat has one line per device.
_MAX = 16 * 1024
_STATISTICS = (
    "cpu.stat", "memory.current", "memory.max", "memory.peak", "memory.swap.current", "memory.swap.max", "memory.stat",
    "memory.events", "pids.current", "pids.max", "io.stat",
)  # fmt: skip


class Cgroup:
    """The cgroup at ``path`` of config.json, below the root."""

    def __init__(self, path: str, *, root: str = ROOT) -> None:
        self._directory = f"{root}/{path.strip('/')}"
        self._watcher: threading.Thread | None = None
        self._end = -1

    def members(self) -> list[int]:
        """The pids in the cgroup and in the cgroups below it."""
        pids: list[int] = []
        for directory, _, _ in os.walk(self._directory):
            pids += map(int, _read(f"{directory}/cgroup.procs").split())
        return pids

    def signal(self, number: int) -> None:
        """Signal every process in the cgroup. The kernel sends SIGKILL (cgroup.kill), so that no fork escapes it."""
        if number == _SIGKILL and os.path.exists(f"{self._directory}/cgroup.kill"):
            with open(f"{self._directory}/cgroup.kill", "w") as file:
                file.write("1")
            return
        signal_each(self.members, number)

    def statistics(self) -> dict[str, str]:
        """The content of the usage files that exist, by name."""
        names = [name for name in _names(self._directory) if name in _STATISTICS or name.startswith("hugetlb.")]
        return {name: _read(f"{self._directory}/{name}") for name in names}

    def oom_kills(self) -> int:
        """How many processes of the cgroup the kernel has killed because memory was exhausted."""
        for line in _read(f"{self._directory}/memory.events").splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
        return 0

    def watch_oom(self, report: Callable[[int], None]) -> None:
        """Call ``report`` with the count of :meth:`oom_kills` whenever it has grown, in a thread, until
        :meth:`unwatch`."""
        self._end = os.eventfd(0, os.EFD_CLOEXEC)
        self._watcher = threading.Thread(target=self._watch_oom, args=(report,), daemon=True)
        self._watcher.start()

    def unwatch(self) -> None:
        """End the thread of :meth:`watch_oom`.

        The kernel does not wake it when the cgroup is removed: a poll of its files continues (seen with Linux 6.1).
        """
        if self._watcher is not None:
            os.eventfd_write(self._end, 1)
            self._watcher.join()
            os.close(self._end)
            self._watcher = None

    def _watch_oom(self, report: Callable[[int], None]) -> None:
        try:
            fd = os.open(f"{self._directory}/memory.events", os.O_RDONLY)
        except OSError:
            return  # no memory controller, or a container that has ended
        reported = 0
        poll = select.poll()
        poll.register(fd, select.POLLPRI)
        poll.register(self._end, select.POLLIN)
        try:
            while True:
                # The kernel reports changes since this descriptor's last read (fs/kernfs/file.c, kernfs_fop_poll()).
                os.lseek(fd, 0, os.SEEK_SET)
                os.read(fd, _MAX)
                count = self.oom_kills()
                if count > reported:
                    reported = count
                    report(count)
                if any(ready == self._end for ready, _ in poll.poll()):
                    return
        except OSError:  # ENODEV: the cgroup has been removed
            return
        finally:
            os.close(fd)


def _names(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []


def _read(path: str) -> str:
    """A file's text; "" if it is missing or cannot be read, like hugetlb files of a cgroup that is being removed."""
    try:
        with open(path, "rb") as file:
            return file.read(_MAX).decode(errors="replace")
    except OSError:
        return ""
