"""oom_score_adj: which process the kernel kills first when memory is exhausted (proc(5)). Standard library only.

Without CAP_SYS_RESOURCE a process can raise the value. It can lower it only to the value that was last set with that
capability, for the process itself or for the ancestor from which it inherited the value (Linux fs/proc/base.c,
__set_oom_adj(): oom_score_adj_min). Opening the file of another user's process requires CAP_DAC_OVERRIDE.
"""

from __future__ import annotations


def read(pid: int | str = "self") -> int:
    """The oom_score_adj of a process. Raises OSError."""
    with open(f"/proc/{pid}/oom_score_adj") as file:
        return int(file.read())


def write(value: int, pid: int | str = "self") -> None:
    """Set the oom_score_adj of a process. Raises OSError."""
    with open(f"/proc/{pid}/oom_score_adj", "w") as file:
        file.write(str(value))


def of_vm(now: int, containers: list[int]) -> int:
    """The value for a pod's VM: the highest of the joined containers, or ``now`` without one. Pure.

    The VM starts with the value of the sandbox's container, which is low, since engines expect that this container
    only waits.
    """
    return max(containers, default=now)


def warning(requested: int, actual: int) -> str:
    """The warning for a VM whose value differs from the one that its containers request."""
    return (
        f"process.oomScoreAdj: cannot set {requested} for the VM, which has {actual}: the host may kill "
        "it earlier when memory is exhausted [give hawse CAP_SYS_RESOURCE]"
    )
