"""Create and stop a sandbox's systemd scope: only systemd may create cgroups below its slices.

hawse runs systemd's programs: it needs two calls only, and a D-Bus library would be another dependency.
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
    """Ask systemd to create the unit with the process in it. Returns warnings if the cgroup is created without systemd.

    ``seconds`` is the maximum wait for the move. The process must be alive. The process is passed by its pid, since
    systemd accepts pidfds only from version 255 on (org.freedesktop.systemd1(5), PIDFDs).
    """
    if not plan.unit:
        return []
    without = f"the cgroup {plan.path} is created without systemd"
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
        return [f"systemd cannot create {plan.unit}: {' '.join(done.stderr.split())[:500]}: {without}"]
    deadline = time.monotonic() + seconds
    while not _is_in(plan.unit, pid, proc):  # systemd answers before its job is done
        if time.monotonic() > deadline:
            return [f"systemd did not move the process into {plan.unit} within {seconds:g} s: {without}"]
        time.sleep(0.005)
    return []


def end_scope(unit: str, *, systemctl: str = _SYSTEMCTL, running: str = _RUNNING) -> None:
    """Stop the systemd unit whose cgroup was removed.

    The kernel reports an empty cgroup up to 10 ms late (CGROUP_FILE_NOTIFY_MIN_INTV, Linux kernel/cgroup/cgroup.c), and
    never if the cgroup was removed before that: the unit would stay active without a process. It is not an error if
    systemd has already removed the unit.
    """
    if not os.path.isdir(running):
        return
    argv = [systemctl, "stop", "--quiet", "--", unit]
    with suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS, check=False)


def arguments(plan: CgroupPlan, pid: int, *, busctl: str = _BUSCTL) -> list[str]:
    """busctl's arguments for StartTransientUnit (org.freedesktop.systemd1(5)), with the same properties as runc."""
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
