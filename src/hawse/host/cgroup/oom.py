"""Record an OOM kill of the guest kernel in the container's cgroup on the host. Standard library only.

Engines read OOM kills from memory.events of the cgroup that contains the container's pid (containerd's shim and conmon
watch it). This file cannot be written, but its counters include events in child cgroups. So hawse starts a process in a
child cgroup whose memory limit is zero, and the kernel kills it. A cgroup that enables controllers for its children
must not contain processes (Linux Documentation/admin-guide/cgroup-v2.rst, "No Internal Process Constraint"), so its
processes are moved to another child meanwhile. Their memory is neither limited nor charged again.

In version 1 the kernel notifies the cgroup whose limit was reached and its children, but not its parents
(mm/memcontrol-v1.c, mem_cgroup_oom_notify()): the method would need a limit on the virtual machine itself.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack, suppress

from hawse.linux.files import read_attribute, write_attribute

MEMBERS, VICTIM = "hawse-members", "hawse-oom"
#: Child cgroups that may be left over if the recording process was killed.
LEFT = (VICTIM, MEMBERS)
_SECONDS = 10.0
_ROUNDS = 100
#: It writes a byte when it is ready, and allocates memory after it has read a byte. At the end of input it exits.
_PROGRAM = (
    "import sys; sys.stdout.buffer.raw.write(b'r'); sys.stdin.buffer.raw.read(1) and bytes(bytearray(1 << 24))  # "
    "its kill stands for one of the same container in its virtual machine"
)


def unfit(directory: str) -> str:
    """The reason why a kill cannot be recorded in this cgroup; "" if it can."""
    if not os.path.exists(f"{directory}/memory.events"):
        return "it has no memory controller of version 2"
    if read_attribute(f"{directory}/cgroup.type") != "domain":
        return "it is not a domain cgroup"
    with os.scandir(directory) as entries:
        if any(entry.is_dir() for entry in entries):
            return "it has children"
    return ""


def record(directory: str, *, program: str = sys.executable) -> None:
    """Add one OOM kill to memory.events of this cgroup and of its parents. Raises OSError.

    The cgroup's processes and controllers are restored in any case.
    """
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
    """Start a process in this cgroup with a memory limit of zero, so that the kernel kills it.

    Raises OSError, also if the process still runs after ``seconds``. The process has ended in any case.
    """
    from socket import socketpair  # hot verbs load this module but do not need it
    from subprocess import PIPE, Popen, TimeoutExpired

    ours, theirs = socketpair()
    argv, end = [program, "-I", "-S", "-c", _PROGRAM], theirs.fileno()
    with ours, theirs, Popen(argv, stdin=end, stdout=end, stderr=PIPE) as process:
        try:
            theirs.close()
            ours.recv(1)
            # The pid cannot be another process's: this process has not waited for its child yet.
            write_attribute(f"{victim}/cgroup.procs", str(process.pid))
            with suppress(FileNotFoundError):  # a kernel without swap
                write_attribute(f"{victim}/memory.swap.max", "0")
            write_attribute(f"{victim}/memory.max", "0")
            with suppress(BrokenPipeError, ConnectionResetError):
                ours.sendall(b"g")
            process.wait(timeout=seconds)
        except TimeoutExpired:
            raise OSError(f"the process in {victim} was not killed despite its memory limit") from None
        finally:
            process.kill()


def _move(source: str, target: str) -> None:
    """Move every process of one cgroup to another, including those that are forked meanwhile. Raises OSError.

    The kernel accepts only a pid here. Each pid is read again just before the move: then another process can have it
    only if all other pids were assigned between the two calls (Linux kernel/pid.c, alloc_pid()).
    """
    for _ in range(_ROUNDS):
        pids = read_attribute(f"{source}/cgroup.procs").split()
        if not pids:
            return
        for pid in pids:
            if pid == "0":  # a process outside this PID namespace
                raise OSError(f"{source} contains processes of other PID namespaces")
            if pid not in read_attribute(f"{source}/cgroup.procs").split():
                continue
            with suppress(ProcessLookupError):
                write_attribute(f"{target}/cgroup.procs", pid)
    raise OSError(f"{source} still contains processes")
