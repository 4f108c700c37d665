"""Scripts for containers, shared by the tests of several engines."""

from __future__ import annotations

from pathlib import Path

#: Prints the container's limits in the guest kernel: memory and CPU time. Where an engine does not request a cgroup
#: namespace, its cgroup is below those of the guest.
SHOW_LIMITS = "IFS=: read _ _ path </proc/self/cgroup; cd /sys/fs/cgroup$path; cat memory.max cpu.max"


def read_hosts_disk() -> str:
    """A script that tries to read the host's disk by the numbers of the first disk in /proc/partitions.

    The first two lines of that file are a heading and an empty line. Loop devices are skipped: the guest's kernel has
    some as well. The script creates the node on the container's /dev, a tmpfs: shared files do not permit device nodes.
    """
    lines = [line.split() for line in Path("/proc/partitions").read_text().splitlines()[2:]]
    major, minor = next(line[:2] for line in lines if not line[3].startswith("loop"))
    return f"mknod /dev/disk b {major} {minor} && dd if=/dev/disk of=/dev/null count=1"
