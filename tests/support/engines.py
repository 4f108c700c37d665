"""Helpers for the tests of several engines: scripts for containers, configuration, terminals."""

from __future__ import annotations

import os
import pty
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.support.runtime import Runtime
from tests.support.scripts import write_program

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


def install(engine: str, file: str, runtime: Runtime) -> None:
    """Configure hawse as an engine's runtime by a wrapper program that adds the test's options."""
    program = write_program(f"{file}.program", f'exec {" ".join(runtime.argv())} "$@"')
    done = runtime("install", engine, "--file", file, "--program", program)
    assert done.code == 0, done


def on_terminal(argv: list[str], environment: Mapping[str, str]) -> str:
    """Run a program, which must succeed, on a terminal; returns its output."""
    master, slave = pty.openpty()
    with subprocess.Popen(argv, env=environment, stdin=slave, stdout=slave, stderr=slave) as process:
        os.close(slave)
        written = b""
        try:
            while piece := os.read(master, 65536):
                written += piece
        except OSError:  # the last process that had the other end open has closed it
            pass
        os.close(master)
    assert process.returncode == 0, written
    return written.decode()
