"""oom_score_adj: which process the kernel kills first for want of memory (proc(5)). Standard library only.

Without CAP_SYS_RESOURCE a process can raise it, and lower it to the value that a process with that capability has set
last, its own or that of the ancestor which it inherits from (Linux fs/proc/base.c, __set_oom_adj(): oom_score_adj_min).
For another user's process the file is opened with CAP_DAC_OVERRIDE.
"""

from __future__ import annotations


def read(pid: int | str = "self") -> int:
    """The value of a process. Raises OSError."""
    with open(f"/proc/{pid}/oom_score_adj") as file:
        return int(file.read())


def write(value: int, pid: int | str = "self") -> None:
    """Set it. Raises OSError."""
    with open(f"/proc/{pid}/oom_score_adj", "w") as file:
        file.write(str(value))


def of_vm(now: int, containers: list[int]) -> int:
    """The value of a pod's virtual machine: the highest of the containers that have joined; ``now`` without one. Pure.

    It begins with that of the sandbox's own container, which is low: engines expect that container to wait only.
    """
    return max(containers, default=now)


def warning(wanted: int, actual: int) -> str:
    """What to warn of a virtual machine that has another value than its containers are to have."""
    return (
        f"process.oomScoreAdj: {wanted} cannot be set for the virtual machine, which has {actual}: the host may kill "
        "it earlier for want of memory [give hawse CAP_SYS_RESOURCE]"
    )
