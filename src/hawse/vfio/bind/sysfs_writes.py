"""Write to sysfs in a child process with a deadline, and run modprobe with a deadline.

A write to ``unbind`` may never return: while a VFIO user has the device open, the kernel blocks the writer; after the
first signal it does so uninterruptibly (Linux drivers/vfio/vfio_main.c, vfio_unregister_group_dev()). So this process
never writes there itself, and never waits without a timeout for a child that does.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

#: Opens with O_TRUNC like a shell's ">"; sysfs ignores it. Prints 0 for each completed write, the errno of a failed
#: one.
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
_KILL_SECONDS = 1.0  # to wait for a killed child to end; a child that the kernel blocks is left behind

#: Killed children that have not ended yet. They are reaped when another child is started.
_left: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True)
class Write:
    """A single write(2) of ``text`` to the file at ``path``."""

    path: str
    text: str


@dataclass(frozen=True)
class Outcome:
    """The result of a list of writes: ``done`` of them were completed.

    If it is not all of them, the next one failed with ``errno`` or ``hangs``. If neither is set, something else ended
    the child.
    """

    done: int
    errno: int = 0
    hangs: bool = False


def carry_out(writes: Sequence[Write], seconds: float) -> Outcome:
    """Carry out the writes in order, until one fails or ``seconds`` have passed in total.

    A write that hangs may still take effect later, when the user of the device closes it. Those after it are not
    carried out.
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
    """Load a kernel module, by its name or a modalias, with modprobe(8). Returns the reason of a failure, "" for none.

    Success means only that modprobe succeeded: look in sysfs whether the driver exists.
    """
    try:
        process = _start(["modprobe", "--", name], errors=True)
    except OSError as error:
        return f"modprobe cannot be started: {error.strerror}"
    assert process.stdout is not None
    try:
        if process.wait(seconds) == 0:
            return ""
        output = process.stdout.read(1024).decode(errors="replace").strip()
        return " ".join(output.split()) or f"modprobe ended with {process.returncode}"
    except subprocess.TimeoutExpired:
        return f"modprobe has not ended after {seconds:g} s"
    finally:
        process.stdout.close()
        _end(process)


def _start(argv: list[str], *, errors: bool = False) -> subprocess.Popen[bytes]:
    """Start a child in its own session: Ctrl-C in a terminal must only reach this process, which undoes the changes."""
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
        process.wait(_KILL_SECONDS)
    except subprocess.TimeoutExpired:
        _left.append(process)


def _read_reports(fd: int, count: int, seconds: float) -> tuple[list[int], bool]:
    """The numbers that the child wrote, one on each line; and whether it wrote ``count`` of them or ended in time."""
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
