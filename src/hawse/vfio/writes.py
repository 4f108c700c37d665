"""Writes to sysfs, carried out by a child with a deadline; and modprobe, with one too.

A write to ``unbind`` may never return: while a VFIO user has the device open the kernel blocks the writer, and after
the first signal uninterruptibly (Linux drivers/vfio/vfio_main.c, vfio_unregister_group_dev()). So this process never
writes there itself, and never waits without a bound for a child that does.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

#: Truncates as a shell's ">" does, which sysfs ignores. Reports 0 for each write done, the errno of one that fails.
_CHILD = r"""
import os, sys
for path, text in zip(sys.argv[1::2], sys.argv[2::2]):
    try:
        fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
        try:
            os.write(fd, os.fsencode(text))
        finally:
            os.close(fd)
    except OSError as error:
        os.write(1, b"%d\n" % error.errno)
        break
    os.write(1, b"0\n")
"""
_PATIENCE = 1.0  # seconds for a killed child to end; one that the kernel holds is left behind

#: Killed children that had not ended by then; looked at again whenever another one is started.
_left: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True)
class Write:
    """``text``, written to the file at ``path`` by one write(2)."""

    path: str
    text: str


@dataclass(frozen=True)
class Outcome:
    """How far a list of writes came: ``done`` of them. The next one, where there is one, failed with ``errno`` or
    ``hangs``; with neither the child was ended by somebody else."""

    done: int
    errno: int = 0
    hangs: bool = False


def carry_out(writes: Sequence[Write], seconds: float) -> Outcome:
    """Do them one after the other, until one fails or ``seconds`` are over for all of them.

    A write that hangs may still take effect, when whoever is in its way goes; those after it never will.
    """
    words = [word for write in writes for word in (write.path, write.text)]
    process = _start([sys.executable, "-I", "-S", "-c", _CHILD, *words])
    assert process.stdout is not None
    try:
        reports, in_time = _read_reports(process.stdout.fileno(), len(writes), seconds)
    finally:
        process.stdout.close()
        _end(process)
    failed = [report for report in reports if report]
    return Outcome(len(reports) - len(failed), errno=failed[0] if failed else 0, hangs=not in_time)


def load_module(name: str, seconds: float) -> str:
    """Load a kernel module, by its name or a modalias, with modprobe(8). Returns why not, "" when modprobe is content.

    Whether the module's driver is there then, sysfs tells.
    """
    try:
        process = _start(["modprobe", "--", name], errors=True)
    except OSError as error:
        return f"modprobe cannot be started: {error.strerror}"
    assert process.stdout is not None
    try:
        if process.wait(seconds) == 0:
            return ""
        words = process.stdout.read(1024).decode(errors="replace").strip()
        return " ".join(words.split()) or f"modprobe ended with {process.returncode}"
    except subprocess.TimeoutExpired:
        return f"modprobe has not ended after {seconds:g} s"
    finally:
        process.stdout.close()
        _end(process)


def _start(argv: list[str], *, errors: bool = False) -> subprocess.Popen[bytes]:
    """A child in a session of its own: the interrupt of a terminal is for us, who undo what has been done."""
    _left[:] = [process for process in _left if process.poll() is None]
    return subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if errors else subprocess.DEVNULL,
        start_new_session=True,
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        _left.append(process)


def _read_reports(fd: int, count: int, seconds: float) -> tuple[list[int], bool]:
    """The numbers that the child wrote, one a line, and whether it was done with ``count`` or ended in time."""
    deadline = time.monotonic() + seconds
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    data = b""
    in_time = True
    while data.count(b"\n") < count:
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            in_time = False
            break
        more = os.read(fd, 4096)
        if not more:
            break
        data += more
    return [int(line) for line in data.splitlines()], in_time
