"""Decide whether an `update` changes anything, without the monitor and the guest. Pure, standard library only.

A kubelet sends the limits of every container again every ten seconds (Kubernetes pkg/kubelet/cm/cpumanager,
reconcileState()).
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing's import would cost a hot verb a tenth of its time
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from hawse.json_text import Document

#: Section of linux.resources → fields that can change in the guest's cgroup while the container runs.
CHANGEABLE = {
    "memory": ("limit", "reservation", "swap"),
    "cpu": ("shares", "quota", "period"),
    "pids": ("limit",),
}
#: CPUs and memory nodes: they apply on the host, since the guest numbers its own.
ON_HOST = (("cpu", "cpus"), ("cpu", "mems"))
#: The sections that an update compares; device rules and unknown ones are ignored.
SECTIONS = (*CHANGEABLE, "unified", "blockIO", "hugepageLimits", "network", "rdma", "intelRdt")


def limits_of(resources: Mapping[str, Any]) -> Document:
    """The part of linux.resources that an update is compared with."""
    return {section: resources[section] for section in SECTIONS if resources.get(section)}


def changes_nothing(update: object, current: Mapping[str, Any]) -> bool:
    """Whether an update leaves every limit unchanged. False also for an update that will be refused."""
    if not isinstance(update, dict):
        return False
    for section, value in update.items():
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
    """Whether a value changes anything: zero, null and the empty string do not, as in runc (update.go)."""
    if isinstance(value, dict):
        return any(map(is_set, value.values()))
    return bool(value)


def _is_same(value: object, now: object) -> bool:
    return not is_set(value) or (type(value) is type(now) and value == now)
