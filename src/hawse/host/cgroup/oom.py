"""Having the host's cgroup of a container count that its guest's kernel has killed for want of memory.

Engines learn of such kills from memory.events of the cgroup that the container's pid is in (containerd's shim and
conmon watch it), and nothing can write there. But the kernel adds what happens below: a process of ours is killed in a
child that may have no memory. A cgroup that gives its children controllers has no processes of its own (Linux
Documentation/admin-guide/cgroup-v2.rst, "No Internal Process Constraint"), so for that moment those that are in it are
in another child. No memory of theirs is limited, moved or counted anew.

Version 1 tells the cgroup whose limit was reached and those below it, never one above (mm/memcontrol-v1.c,
mem_cgroup_oom_notify()): there it would take a limit on the virtual machine itself. Standard library only.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack, suppress

from hawse.linux.files import read_attribute, write_attribute

MEMBERS, VICTIM = "hawse-members", "hawse-oom"
#: What may be left of a recording whose process was killed, below a container's cgroup.
LEFT = (VICTIM, MEMBERS)
_SECONDS = 10.0
_ROUNDS = 100
#: Ready, then told to, it takes memory; told nothing, it ends.
_PROGRAM = (
    "import sys; sys.stdout.buffer.raw.write(b'r'); sys.stdin.buffer.raw.read(1) and bytes(bytearray(1 << 24))  # "
    "its kill stands for one of the same container in its virtual machine"
)


def unfit(directory: str) -> str:
    """Why nothing can be recorded in that cgroup; "" where it can."""
    if not os.path.exists(f"{directory}/memory.events"):
        return "it has no memory controller of version 2"
    if read_attribute(f"{directory}/cgroup.type") != "domain":
        return "it is no domain"
    with os.scandir(directory) as entries:
        if any(entry.is_dir() for entry in entries):
            return "it has children"
    return ""


def record(directory: str, *, program: str = sys.executable) -> None:
    """Have one kill more in the memory.events of that cgroup, and of those above it. Raises OSError; either way all
    is as it was then."""
    with ExitStack() as undo:
        members, victim = f"{directory}/{MEMBERS}", f"{directory}/{VICTIM}"
        os.mkdir(members)
        undo.callback(os.rmdir, members)
        undo.callback(_move, members, directory)
        _move(directory, members)
        write_attribute(f"{directory}/cgroup.subtree_control", "+memory")
        undo.callback(write_attribute, f"{directory}/cgroup.subtree_control", "-memory")
        os.mkdir(victim)
        undo.callback(os.rmdir, victim)
        kill_in(victim, program=program)


def kill_in(victim: str, *, program: str = sys.executable, seconds: float = _SECONDS) -> None:
    """Start a process in that cgroup, whose memory limit is zero, so that the kernel kills it.

    Raises OSError, after ``seconds`` where the process goes on; it has ended either way.
    """
    from socket import socketpair  # what a hot verb that loads this module has no use for
    from subprocess import PIPE, Popen, TimeoutExpired

    ours, theirs = socketpair()
    argv, end = [program, "-I", "-S", "-c", _PROGRAM], theirs.fileno()
    with ours, theirs, Popen(argv, stdin=end, stdout=end, stderr=PIPE) as process:
        try:
            theirs.close()
            ours.recv(1)
            # A child that was not waited for: the pid is its own.
            write_attribute(f"{victim}/cgroup.procs", str(process.pid))
            with suppress(FileNotFoundError):  # a kernel without swap
                write_attribute(f"{victim}/memory.swap.max", "0")
            write_attribute(f"{victim}/memory.max", "0")
            with suppress(BrokenPipeError, ConnectionResetError):
                ours.sendall(b"g")
            process.wait(timeout=seconds)
        except TimeoutExpired:
            raise OSError(f"the process in {victim} took memory that it may not have") from None
        finally:
            process.kill()


def _move(source: str, target: str) -> None:
    """Have every process of one cgroup in another; new ones come by forks meanwhile. Raises OSError.

    The kernel takes a pid here, and nothing else. A process that ends between the two calls leaves its pid to another
    one only when all others were given out meanwhile (Linux kernel/pid.c, alloc_pid()): so each is read just before.
    """
    for _ in range(_ROUNDS):
        pids = read_attribute(f"{source}/cgroup.procs").split()
        if not pids:
            return
        for pid in pids:
            if pid == "0":  # of a PID namespace that is none of ours
                raise OSError(f"{source} has processes that cannot be seen from here")
            if pid not in read_attribute(f"{source}/cgroup.procs").split():
                continue
            with suppress(ProcessLookupError):
                write_attribute(f"{target}/cgroup.procs", pid)
    raise OSError(f"{source} does not get empty")
