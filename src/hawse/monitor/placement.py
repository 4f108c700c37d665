"""Place a pod's VM on the host: on the union of the CPUs and memory nodes of its containers.

A kubelet assigns CPUs to containers, but not to a sandbox (pkg/kubelet/cm/cpumanager). Without this module the VM would
also run on CPUs that are exclusive to other pods.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from hawse.host.cgroup.sandbox_cgroup import HostCgroup
from hawse.linux.topology import last_number
from hawse.oci.limits.cgroups import HostLimits
from hawse.oci.limits.cpusets import together

#: Lists of CPUs and memory nodes; "" for all that the parent cgroup allows.
Lists = tuple[str, str]


class Placement:
    """The cpuset of the cgroup of a pod's VM. ``read`` returns the current lists of the sandbox, and of each running
    container in it."""

    def __init__(
        self,
        cgroup: HostCgroup,
        read: Callable[[], tuple[Lists, Iterable[Lists]]],
        *,
        last: Callable[[str], int] = last_number,
    ) -> None:
        self._cgroup = cgroup
        self._read = read
        self._last = last
        self._lock = asyncio.Lock()
        self._changed = False

    async def update(self) -> list[str]:
        """Set the lists from those of the containers. Returns warnings.

        Raises :class:`HostError` if they cannot be set, since nothing else limits the VM to them.
        """
        async with self._lock:
            own, lists = self._read()
            target = self._union(own, list(lists))
            if target == own and not self._changed:
                return []
            self._changed = True
            return await asyncio.to_thread(self._set, target)

    def _union(self, own: Lists, lists: list[Lists]) -> Lists:
        cpus = together(own[0], [cpus for cpus, _ in lists], last=self._last("cpu"))
        return cpus, together(own[1], [mems for _, mems in lists], last=self._last("node"))

    def _set(self, target: Lists) -> list[str]:
        cpus, mems = target
        for name, text in (("cpuset.cpus", cpus), ("cpuset.mems", mems)):
            if not text:
                self._cgroup.inherit(name)
        return self._cgroup.limit(HostLimits(cpus=cpus, mems=mems))
