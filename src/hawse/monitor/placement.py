"""Where on the host a pod's virtual machine runs: on the CPUs and memory nodes of its containers together.

A kubelet gives CPUs to containers, and none to a sandbox (pkg/kubelet/cm/cpumanager): without this the virtual machine
of a pod would run on the CPUs that other pods have to themselves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from hawse.host.cgroup.sandbox_cgroup import HostCgroup
from hawse.linux.topology import last_number
from hawse.oci.limits.cgroups import HostLimits
from hawse.oci.limits.cpusets import together

#: CPUs and memory nodes, as lists; "" for all that the cgroup above allows.
Lists = tuple[str, str]


class Placement:
    """The lists of the cgroup that holds a pod's virtual machine. ``read``: those of the sandbox, and of each container
    in it that runs, as they are now."""

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
        self._moved = False

    async def follow(self) -> list[str]:
        """Set them as the containers have theirs now. Returns warnings.

        Raises :class:`HostError` where they cannot be set: nothing else keeps the virtual machine there.
        """
        async with self._lock:
            own, lists = self._read()
            wanted = self._together(own, list(lists))
            if wanted == own and not self._moved:
                return []
            self._moved = True
            return await asyncio.to_thread(self._move, wanted)

    def _together(self, own: Lists, lists: list[Lists]) -> Lists:
        cpus = together(own[0], [cpus for cpus, _ in lists], last=self._last("cpu"))
        return cpus, together(own[1], [mems for _, mems in lists], last=self._last("node"))

    def _move(self, wanted: Lists) -> list[str]:
        cpus, mems = wanted
        for name, text in (("cpuset.cpus", cpus), ("cpuset.mems", mems)):
            if not text:
                self._cgroup.inherit(name)
        return self._cgroup.limit(HostLimits(cpus=cpus, mems=mems))
