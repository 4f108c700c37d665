"""config-linux.md, resources: limits as the container reads them, and their effect."""

from __future__ import annotations

import re

from tests.conformance.subject import Bundle
from tests.conformance.suite import Case, Spec, inside

MEMORY = "config-linux.md#memory"
CPU = "config-linux.md#cpu"
PIDS = "config-linux.md#pids"
RESOURCES = "config-linux.md#control-groups"


def _read(two: str, one: str) -> str:
    """A command that prints a file of the cgroup, of version 2 or of version 1."""
    return f"cat /sys/fs/cgroup/{two} 2>/dev/null || cat /sys/fs/cgroup/{one}"


def _limited(spec: Spec, _bundle: Bundle) -> None:
    spec["linux"]["resources"] |= {
        "memory": {"limit": 64 << 20, "reservation": 32 << 20},
        "cpu": {"quota": 50000, "period": 100000, "shares": 512},
        "pids": {"limit": 20},
    }


LIMITED = inside(
    "limits",
    _limited,
    [
        Case("memory-limit", MEMORY, "memory.limit is set in the cgroup", str(64 << 20),
             _read("memory.max", "memory/memory.limit_in_bytes")),
        Case("memory-reservation", MEMORY, "memory.reservation is set in the cgroup", str(32 << 20),
             _read("memory.low", "memory/memory.soft_limit_in_bytes")),
        Case("memory-kill", MEMORY, "a process that allocates more is killed, and the container continues", "137",
             "dd if=/dev/zero of=/dev/null bs=128M count=1 2>/dev/null; echo $?"),
        Case("cpu-quota", CPU, "cpu.quota and cpu.period are set in the cgroup", "50000 100000",
             "cat /sys/fs/cgroup/cpu.max 2>/dev/null || echo "
             "$(cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu/cpu.cfs_period_us)"),
        Case("cpu-shares", CPU, "cpu.shares is set in the cgroup (in version 2 as a weight)", re.compile("^(512|20)$"),
             _read("cpu.weight", "cpu/cpu.shares")),
        Case("pids-limit", PIDS, "pids.limit is set in the cgroup", "20", _read("pids.max", "pids/pids.max")),
        Case("pids-fork", PIDS, "a fork beyond the limit fails", re.compile("can't fork"),
             "i=0; while [ $i -lt 40 ]; do sleep 1000 & i=$((i+1)); done"),
    ],
)  # fmt: skip


def _unset(spec: Spec, _bundle: Bundle) -> None:
    """Values that Docker, Podman, containerd and CRI-O write for limits that nobody has requested."""
    spec["linux"] |= {"mountLabel": "", "intelRdt": None, "timeOffsets": {}, "rootfsPropagation": ""}
    spec["linux"]["resources"] |= {
        "memory": {"disableOOMKiller": False, "limit": -1, "swap": 0, "kernel": 0},
        "cpu": {
            "shares": 0,
            "quota": -1,
            "period": 0,
            "realtimeRuntime": 0,
            "realtimePeriod": 0,
            "cpus": "",
            "mems": "",
        },
        "blockIO": {"weight": 0, "weightDevice": [], "throttleReadBpsDevice": None},
        "pids": {"limit": -1},
        "network": {},
        "unified": None,
    }


UNSET = inside(
    "unset limits",
    _unset,
    [
        Case("memory-unlimited", MEMORY, "a memory.limit of -1 means unlimited",
             re.compile("^(max|9223372036854771712)$"), _read("memory.max", "memory/memory.limit_in_bytes")),
        Case("cpu-unlimited", CPU, "a cpu.quota of -1 means unlimited", re.compile("^(max .*|-1)$"),
             _read("cpu.max", "cpu/cpu.cfs_quota_us")),
        Case("pids-unlimited", PIDS, "a pids.limit of -1 means unlimited", "max", _read("pids.max", "pids/pids.max")),
        Case("resources-unset", RESOURCES, "zero, null and empty values request nothing", "yes", "echo yes"),
    ],
)  # fmt: skip


def _unified(spec: Spec, _bundle: Bundle) -> None:
    spec["linux"]["resources"] |= {
        "memory": {"limit": 64 << 20, "swap": 64 << 20},
        "cpu": {"idle": 1, "quota": 50000, "period": 100000, "burst": 20000},
        "unified": {"memory.high": str(48 << 20), "pids.max": "31", "memory.oom.group": "1"},
    }


UNIFIED = inside(
    "limits of version 2",
    _unified,
    [
        Case("unified", "config-linux.md#unified", "unified sets files of the cgroup", f"{48 << 20} 31 1",
             "echo $(cd /sys/fs/cgroup; cat memory.high pids.max memory.oom.group)"),
        Case("memory-swap", MEMORY, "memory.swap is the sum of memory and swap", "0",
             "cat /sys/fs/cgroup/memory.swap.max"),
        Case("cpu-idle", CPU, "cpu.idle is set in the cgroup", "1", "cat /sys/fs/cgroup/cpu.idle"),
        Case("cpu-burst", CPU, "cpu.burst is set in the cgroup", "20000", "cat /sys/fs/cgroup/cpu.max.burst"),
    ],
)  # fmt: skip


def _pinned(spec: Spec, bundle: Bundle) -> None:
    spec["linux"]["cgroupsPath"] = f"/{bundle.name}"
    spec["linux"]["resources"]["cpu"] = {"cpus": "0"}


PINNED = inside(
    "CPUs of the host",
    _pinned,
    [Case("cpu-list", CPU, "a program sees as many CPUs as cpu.cpus lists", "1", "/bin/busybox nproc")],
)

GROUPS = [LIMITED, UNSET, UNIFIED, PINNED]
