"""A container's resources: its processes, statistics and limits, and OOM kills."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextlib import suppress

from hawse.errors import HawseError, HostError, VmError
from hawse.host.cgroup.sandbox_cgroup import HostCgroup
from hawse.json_text import Document
from hawse.linux.topology import last_number
from hawse.monitor.agent.calls import Listing, Statistics, Update
from hawse.monitor.container_state import ContainerState
from hawse.monitor.processes.process_table import Processes
from hawse.oci.limits import cpusets, statistics
from hawse.oci.limits import update as resources
from hawse.oci.limits.cgroups import HostLimits, host_limits
from hawse.oci.limits.changes import limits_of
from hawse.oci.process import table
from hawse.plan.model import ContainerPlan

_LONGEST_WAIT = 24 * 3600.0
#: Minimum time between two reports of OOM kills.
_OOM_SECONDS = 1.0


class Usage:
    """The resources of one container. ``check_memory`` gets a new memory limit in bytes, and returns warnings or raises
    :class:`ConfigError`. ``last`` is :func:`hawse.linux.topology.last_number`.
    """

    def __init__(
        self,
        plan: ContainerPlan,
        processes: Processes,
        cgroup: HostCgroup,
        state: ContainerState,
        *,
        check_memory: Callable[[int], list[str]] = lambda _limit: [],
        last: Callable[[str], int] = last_number,
    ) -> None:
        self._name = plan.id
        self._processes = processes
        self._state = state
        self._check_memory = check_memory
        self._last = last
        self._cgroup = cgroup
        self._holds_vm = plan.cgroup.vm
        spec_resources = plan.spec.get("linux", {}).get("resources") or {}
        on_host = {field: value for field in ("cpus", "mems") if (value := getattr(plan.cgroup.limits, field))}
        self._limits: Document = spec_resources | {"cpu": (spec_resources.get("cpu") or {}) | on_host}
        #: `hawse update` reads it, and sends no request if nothing changes.
        self._state.limits = limits_of(self._limits)
        #: The limits that the host and the guest have set; unknown after a failure.
        self._on_host: HostLimits | None = host_limits(self._limits, vm=self._holds_vm)
        self._in_guest = resources.for_guest(self._limits)
        self._changed = asyncio.Event()
        self._kills = 0
        self._ended = False
        self._reported_at: float | None = None
        self._report_timer: asyncio.TimerHandle | None = None

    @property
    def cpusets(self) -> tuple[str, str]:
        """The lists of the host's CPUs and memory nodes that the container may use, "" for no limit."""
        cpu = self._limits["cpu"]
        return cpu.get("cpus") or "", cpu.get("mems") or ""

    async def answer(self, method: str, params: Document) -> object:
        """Answer a query method of the monitor. Raises :class:`StateError` if the container has ended."""
        self._state.check_alive()
        if method == "pids":
            return self._processes.proxies(self._name)
        if method == "listing":
            processes = await self._processes.call(Listing(container=self._name))
            return table.rows(processes)
        if method == "statistics":
            files = await self._processes.call(Statistics(container=self._name))
            return statistics.convert(files)
        if method == "await_oom":
            return await self._await_oom(int(params["seen"]), float(params["seconds"]))
        raise VmError(f"the monitor has no method {method}")

    def note_oom(self, kills: int) -> None:
        """Record the number of OOM kills that the guest reports."""
        if kills <= max(self._kills, self._state.oom_kills):
            return
        if not self._state.oom_kills and not self._kills:
            # Once: engines read whether a kill occurred. The count comes from the hostile guest.
            self._processes.hold(self._name, self._record_oom())
        self._kills = kills
        # Rate limited, since each report writes the state and causes an event of the engine.
        loop = asyncio.get_running_loop()
        if self._reported_at is None or loop.time() - self._reported_at >= _OOM_SECONDS:
            self._report_oom()
        elif self._report_timer is None:
            self._report_timer = loop.call_at(self._reported_at + _OOM_SECONDS, self._report_oom)

    def end(self) -> None:
        """Report the container's end to callers that wait for an OOM kill."""
        self._ended = True
        if self._report_timer is not None:
            self._report_timer.cancel()
            self._report_oom()
        self._wake()

    def _report_oom(self) -> None:
        self._report_timer, self._reported_at = None, asyncio.get_running_loop().time()
        self._state.oom_kills = self._kills
        self._state.write()
        self._wake()

    async def _record_oom(self) -> None:
        try:
            await asyncio.to_thread(self._cgroup.record_oom)
        except OSError as error:
            print(f"cannot record an OOM kill in the host's cgroup: {error}", file=sys.stderr)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _await_oom(self, seen: int, seconds: float) -> int:
        """The number of OOM kills, as soon as it exceeds ``seen``, or after ``seconds``."""
        with suppress(TimeoutError):
            async with asyncio.timeout(min(seconds, _LONGEST_WAIT)):
                while self._state.oom_kills <= seen and not self._ended:
                    await self._changed.wait()
        return self._state.oom_kills

    async def update(self, changes: object) -> list[str]:
        """Apply changed limits on the host and in the guest. Returns warnings.

        Raises StateError, ConfigError, HostError or VmError.
        """
        self._state.check_alive()
        merged = resources.merge(changes, self._limits)
        self._check_lists(merged)
        warnings: list[str] = []
        limit = (merged.get("memory") or {}).get("limit") or 0
        if limit != ((self._limits.get("memory") or {}).get("limit") or 0):
            warnings = self._check_memory(limit)
        on_host = host_limits(merged, vm=self._holds_vm)
        if on_host == self._on_host:
            await self._update_guest(merged)
        else:
            before, self._on_host = self._on_host, None
            self._record_limits(None)
            values = await asyncio.to_thread(self._cgroup.values)
            try:
                warnings += await asyncio.to_thread(self._cgroup.limit, on_host)
                await self._update_guest(merged)
            except HawseError as failure:
                await self._restore(values, failure)
                self._on_host = before
                raise
            self._on_host = on_host
        self._limits = merged
        self._record_limits(merged)
        return warnings

    async def _update_guest(self, merged: Document) -> None:
        in_guest = resources.for_guest(merged)
        if changed := resources.difference(self._in_guest, in_guest):
            self._in_guest = {}
            self._record_limits(None)
            await self._processes.call(Update(container=self._name, resources=changed))
            self._in_guest = in_guest

    async def _restore(self, values: dict[str, str], failure: HawseError) -> None:
        """Restore the limits on the host, as runc does if an update fails. If that fails, too, the failure is raised
        with both messages."""
        try:
            await asyncio.to_thread(self._cgroup.restore, values)
        except HostError as problem:
            failure.message += f"; and then {problem.message}"
            raise failure from None

    def _check_lists(self, merged: Document) -> None:
        """Check changed lists of CPUs or memory nodes. Raises :class:`ConfigError`, as `create` does."""
        for field, kind in (("cpus", "cpu"), ("mems", "node")):
            text = merged["cpu"].get(field) or ""
            if text != (self._limits["cpu"].get(field) or ""):
                cpusets.check("update: linux.resources", field, text, last=self._last(kind))

    def _record_limits(self, limits: Document | None) -> None:
        """Save the limits in the state; None for unknown limits."""
        recorded = None if limits is None else limits_of(limits)
        if self._state.limits != recorded:
            self._state.limits = recorded
            self._state.write()
