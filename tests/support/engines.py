"""What tests of several engines have run in their containers."""

from __future__ import annotations

from pathlib import Path

#: The container's limits as the guest's kernel has them: memory and CPU time. Where an engine asks for no cgroup
#: namespace, its cgroup is below those of the guest.
SHOW_LIMITS = "IFS=: read _ _ path </proc/self/cgroup; cd /sys/fs/cgroup$path; cat memory.max cpu.max"


def read_hosts_disk() -> str:
    """A script that would, by the numbers of the first disk in /proc/partitions, below a heading and an empty line.

    The node is on the container's /dev, a tmpfs: on shared files no node can be made.
    """
    major, minor = Path("/proc/partitions").read_text().splitlines()[2].split()[:2]
    return f"mknod /dev/disk b {major} {minor} && dd if=/dev/disk of=/dev/null count=1"
