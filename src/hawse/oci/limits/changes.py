"""Whether an `update` asks for anything: decided without the monitor and the guest. Pure, standard library only.

A kubelet sends every container's limits again, every ten seconds (Kubernetes pkg/kubelet/cm/cpumanager,
reconcileState()).
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing's import would cost a hot verb a tenth of its time
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

#: Section of linux.resources → fields that the guest's cgroup takes while the container runs.
CHANGEABLE = {
    "memory": ("limit", "reservation", "swap"),
    "cpu": ("shares", "quota", "period"),
    "pids": ("limit",),
}
#: Which CPUs and memory nodes: of the host, since the guest counts its own.
ON_HOST = (("cpu", "cpus"), ("cpu", "mems"))
#: The sections that an update compares; device rules and unknown ones are ignored.
SECTIONS = (*CHANGEABLE, "unified", "blockIO", "hugepageLimits", "network", "rdma", "intelRdt")


def limits_of(resources: Mapping[str, Any]) -> dict[str, Any]:
    """The part of linux.resources that an update is compared with."""
    return {section: resources[section] for section in SECTIONS if resources.get(section)}


def changes_nothing(wanted: object, current: Mapping[str, Any]) -> bool:
    """Whether an update leaves every limit as it is. False also for one that is to be refused."""
    if not isinstance(wanted, dict):
        return False
    for section, value in wanted.items():
        if section not in SECTIONS or value is None:
            continue
        now = current.get(section)
        if section in CHANGEABLE or section == "unified":
            known = now or {}
            if not isinstance(value, dict) or not all(_is_same(value[field], known.get(field)) for field in value):
                return False
        elif is_set(value) and value != now:
            return False
    return True


def is_set(value: object) -> bool:
    """Whether it says anything: zero, null and the empty string change nothing, as in runc (update.go)."""
    if isinstance(value, dict):
        return any(map(is_set, value.values()))
    return bool(value)


def _is_same(wanted: object, now: object) -> bool:
    return not is_set(wanted) or (type(wanted) is type(now) and wanted == now)
