"""A container's cgroup in the guest: who is in it, what it has used, and when the kernel has killed for memory.

Files of Linux's Documentation/admin-guide/cgroup-v2.rst; what they mean is for the host to work out.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable

from hawse.agent.system.pids import signal_each

ROOT = "/sys/fs/cgroup"
_SIGKILL = 9
#: Of each file: the largest, memory.stat, has some 1500 bytes, and io.stat a line for each device.
_MAX = 16 * 1024
_STATISTICS = (
    "cpu.stat", "memory.current", "memory.max", "memory.peak", "memory.swap.current", "memory.swap.max", "memory.stat",
    "memory.events", "pids.current", "pids.max", "io.stat",
)  # fmt: skip


class Cgroup:
    """The cgroup at a path below the root, as config.json has it."""

    def __init__(self, path: str, *, root: str = ROOT) -> None:
        self._directory = f"{root}/{path.strip('/')}"
        self._watcher: threading.Thread | None = None
        self._end = -1

    def members(self) -> list[int]:
        """The pids in it and below it."""
        found: list[int] = []
        for directory, _, _ in os.walk(self._directory):
            found += map(int, _read(f"{directory}/cgroup.procs").split())
        return found

    def signal(self, number: int) -> None:
        """Signal every process in it. SIGKILL is the kernel's to send: nobody escapes it by a fork."""
        if number == _SIGKILL and os.path.exists(f"{self._directory}/cgroup.kill"):
            with open(f"{self._directory}/cgroup.kill", "w") as file:
                file.write("1")
            return
        signal_each(self.members, number)

    def statistics(self) -> dict[str, str]:
        """The files that are there, by name."""
        names = [name for name in _names(self._directory) if name in _STATISTICS or name.startswith("hugetlb.")]
        return {name: _read(f"{self._directory}/{name}") for name in names}

    def oom_kills(self) -> int:
        """How often the kernel has killed a process of it for want of memory."""
        for line in _read(f"{self._directory}/memory.events").splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
        return 0

    def watch_oom(self, tell: Callable[[int], None]) -> None:
        """Call ``tell`` with the count of :meth:`oom_kills`, in a thread, whenever it has grown, until
        :meth:`unwatch`."""
        self._end = os.eventfd(0, os.EFD_CLOEXEC)
        self._watcher = threading.Thread(target=self._watch_oom, args=(tell,), daemon=True)
        self._watcher.start()

    def unwatch(self) -> None:
        """End that thread: the kernel does not wake who polls a file of a cgroup that goes, seen with Linux 6.1."""
        if self._watcher is not None:
            os.eventfd_write(self._end, 1)
            self._watcher.join()
            os.close(self._end)
            self._watcher = None

    def _watch_oom(self, tell: Callable[[int], None]) -> None:
        try:
            fd = os.open(f"{self._directory}/memory.events", os.O_RDONLY)
        except OSError:
            return  # no memory controller, or a container that has ended
        seen = 0
        poll = select.poll()
        poll.register(fd, select.POLLPRI)
        poll.register(self._end, select.POLLIN)
        try:
            while True:
                # The kernel notifies of changes since this descriptor's last read (fs/kernfs/file.c, kernfs_fop_poll).
                os.lseek(fd, 0, os.SEEK_SET)
                os.read(fd, _MAX)
                count = self.oom_kills()
                if count > seen:
                    seen = count
                    tell(count)
                if any(ready == self._end for ready, _ in poll.poll()):
                    return
        except OSError:  # ENODEV: it has been removed
            return
        finally:
            os.close(fd)


def _names(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []


def _read(path: str) -> str:
    """A file's text; empty for one that is not there or cannot be read now (hugetlb's are, of a cgroup that ends)."""
    try:
        with open(path, "rb") as file:
            return file.read(_MAX).decode(errors="replace")
    except OSError:
        return ""
