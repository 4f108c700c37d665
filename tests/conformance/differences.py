"""Known differences: cases that a runtime does not pass, and why.

A test fails for a difference that is not listed, and for a listed one that no longer exists. Some differences depend on
the host, which is inspected.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """Why a runtime does not pass a case.

    ``exists_here``: whether this host has the difference. ``hosts``: the hosts that have it, in words; "" for all.
    """

    why: str
    hosts: str = ""
    exists_here: Callable[[], bool] = lambda: True


def _lacks_sys_resource() -> bool:
    with open("/proc/self/status") as file:
        [line] = [line for line in file if line.startswith("CapEff:")]
    return not int(line.split()[1], 16) & 1 << 24


def _has_cgroups_of_version_1() -> bool:
    return not os.path.exists("/sys/fs/cgroup/cgroup.controllers")


_LIMITS = Difference(
    "Raising a limit needs CAP_SYS_RESOURCE, which root in a guest has", "without CAP_SYS_RESOURCE", _lacks_sys_resource
)
_VERSION_1 = Difference(
    "cgroups of version 1 do not have this file; a guest has version 2", "with cgroups of version 1",
    _has_cgroups_of_version_1,
)  # fmt: skip
_POSTSTART = Difference("runc 1.1 runs poststart at the end of create, before the program is executed")
_VERSIONS = Difference("runc 1.1 does not check the version")
_LATER = Difference("runc 1.1 implements version 1.0 of the specification, which does not have this field")
_MACHINE = "The container runs on the kernel of a virtual machine, whose {} are not the host's"
_PRIVATE = Difference(
    "Refused by the field's name: crun 1.8 in the guest makes every mount private, and none could appear on the host"
)

#: The differences, by case and by the name of the runtime.
DIFFERENCES: dict[str, dict[str, Difference]] = {
    "rlimit-memlock-unlimited": {"runc": _LIMITS},
    "rlimit-raised": {"runc": _LIMITS},
    "oom-score-adj-negative": {"runc": _LIMITS},
    "domainname": {"runc": _LATER},
    "personality-linux32": {"runc": _LATER},
    "personality-domain": {"runc": _LATER},
    "unified": {"runc": _VERSION_1},
    "memory-swap": {"runc": _VERSION_1},
    "cpu-idle": {"runc": _VERSION_1},
    "cpu-burst": {"runc": _VERSION_1},
    "hooks-create": {"runc": _POSTSTART},
    "hooks-start": {"runc": _POSTSTART},
    "hook-state-poststart": {"runc": _POSTSTART},
    "oci-version": {"runc": _VERSIONS},
    "oci-version-none": {"runc": _VERSIONS},
    "rlimit-duplicate": {"runc": Difference("runc 1.1 sets both, one after the other")},
    "mappings-without-user": {"runc": Difference("runc 1.1 ignores mappings without a user namespace")},
    "rootfs-shared": {"runc": Difference("runc 1.1 makes the root private again after it has entered it")},
    "rootfs-unbindable": {"runc": Difference("runc 1.1 makes its bind of the root unbindable, and then fails")},
    "mount-shared": {"hawse": _PRIVATE},
    "mount-unbindable": {"hawse": _PRIVATE},
    "pid-namespace-none": {"hawse": Difference(_MACHINE.format("processes"))},
    "ipc-namespace-none": {"hawse": Difference(_MACHINE.format("IPC objects"))},
    "hook-state-startContainer": {
        "hawse": Difference("crun 1.8 runs this hook in the guest and passes its own status, starting")
    },
}


def known(case: str, runtime: str) -> Difference | None:
    """The known difference of a case for a runtime on this host."""
    difference = DIFFERENCES.get(case, {}).get(runtime)
    return difference if difference is not None and difference.exists_here() else None
