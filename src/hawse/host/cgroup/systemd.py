"""A scope of systemd's for a sandbox: systemd alone may make cgroups below its slices.

By systemd's own programs: the calls are two, and a library for D-Bus would be one more dependency.
"""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import suppress

from hawse.oci.limits.cgroups import CgroupPlan, HostLimits

_BUSCTL, _SYSTEMCTL = "/usr/bin/busctl", "/usr/bin/systemctl"
_RUNNING = "/run/systemd/system"  # sd_booted(3)
_SECONDS = 10.0


def enter_scope(
    plan: CgroupPlan,
    pid: int,
    *,
    busctl: str = _BUSCTL,
    running: str = _RUNNING,
    proc: str = "/proc",
    seconds: float = _SECONDS,
) -> list[str]:
    """Ask systemd to create the unit with the process in it. Returns warnings when the cgroup is created without it.

    ``seconds`` bound the wait for the move. The process is alive when this is called. systemd takes pidfds only from
    version 255 on (org.freedesktop.systemd1(5), PIDFDs), so it gets the pid.
    """
    if not plan.unit:
        return []
    without = f"the cgroup {plan.path} is made without systemd"
    if not os.path.isdir(running):
        return [f"systemd does not run here: {without}"]
    try:
        done = subprocess.run(
            arguments(plan, pid, busctl=busctl), stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=_SECONDS, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return [f"busctl: {error}: {without}"]
    if done.returncode:
        return [f"systemd does not make {plan.unit}: {' '.join(done.stderr.split())[:500]}: {without}"]
    deadline = time.monotonic() + seconds
    while not _is_in(plan.unit, pid, proc):  # the answer is a job's name, and the job takes its time
        if time.monotonic() > deadline:
            return [f"systemd has not moved a process into {plan.unit} for {seconds:g} s: {without}"]
        time.sleep(0.005)
    return []


def end_scope(unit: str, *, systemctl: str = _SYSTEMCTL, running: str = _RUNNING) -> None:
    """Have systemd forget the unit whose cgroup was removed.

    The kernel tells of an empty cgroup up to 10 ms late (CGROUP_FILE_NOTIFY_MIN_INTV, Linux kernel/cgroup/cgroup.c),
    and of one that was removed before that never: the unit would stay active without a process. One that systemd has
    forgotten by itself is no failure.
    """
    if not os.path.isdir(running):
        return
    argv = [systemctl, "stop", "--quiet", "--", unit]
    with suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS, check=False)


def arguments(plan: CgroupPlan, pid: int, *, busctl: str = _BUSCTL) -> list[str]:
    """busctl's words for StartTransientUnit (org.freedesktop.systemd1(5)), with the properties that runc gives."""
    properties = [
        ["Description", "s", f"hawse sandbox {plan.unit}"],
        ["PIDs", "au", "1", str(pid)],
        ["Slice", "s", plan.slice],
        ["Delegate", "b", "true"],
        ["DefaultDependencies", "b", "false"],
        ["CollectMode", "s", "inactive-or-failed"],
        *_limits(plan.limits),
    ]
    manager = ["org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager"]
    words = [word for entry in properties for word in entry]
    method = ["StartTransientUnit", "ssa(sv)a(sa(sv))"]
    return [busctl, "call", *manager, *method, plan.unit, "fail", str(len(properties)), *words, "0"]


def _limits(limits: HostLimits) -> list[list[str]]:
    """The limits that systemd would otherwise reset when it reloads its units (systemd.resource-control(5))."""
    properties = []
    if limits.memory:
        properties.append(["MemoryMax", "t", str(limits.memory)])
    if limits.tasks:
        properties.append(["TasksMax", "t", str(limits.tasks)])
    if limits.quota > 0:
        properties.append(["CPUQuotaPerSecUSec", "t", str(limits.quota * 1_000_000 // limits.period)])
    return properties


def _is_in(unit: str, pid: int, proc: str) -> bool:
    try:
        with open(f"{proc}/{pid}/cgroup") as file:
            return any(line.rstrip().endswith(f"/{unit}") for line in file)
    except OSError:
        return False
