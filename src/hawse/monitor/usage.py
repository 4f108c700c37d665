"""What a container uses and may use: its processes, its statistics, its limits, and the kernel's kills for memory."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextlib import suppress

from hawse.errors import HawseError, HostError, StateError, VmError
from hawse.host.cgroup.sandbox_cgroup import HostCgroup
from hawse.json_text import Document
from hawse.linux.topology import last_number
from hawse.monitor.agent.calls import Listing, Statistics, Update
from hawse.monitor.processes.processes import Processes
from hawse.oci.limits import cpusets, statistics
from hawse.oci.limits import update as resources
from hawse.oci.limits.cgroups import HostLimits, host_limits
from hawse.oci.limits.changes import limits_of
from hawse.oci.process import table
from hawse.plan.model import ContainerPlan
from hawse.state.store import CREATED, PAUSED, RUNNING

_LONGEST_WAIT = 24 * 3600.0
#: Between two changes of the count of kills.
_OOM_SECONDS = 1.0


class Usage:
    """One for a container; ``state`` is the container's own, and ``write`` keeps it. ``fits`` is told
    of a new limit of memory, in bytes, and returns warnings, or raises :class:`ConfigError`. ``last`` is
    :func:`hawse.linux.topology.last_number`."""

    def __init__(
        self,
        plan: ContainerPlan,
        processes: Processes,
        cgroup: HostCgroup,
        state: Document,
        write: Callable[[], None],
        *,
        fits: Callable[[int], list[str]] = lambda _limit: [],
        last: Callable[[str], int] = last_number,
    ) -> None:
        self._name = plan.id
        self._processes = processes
        self._state = state
        self._write = write
        self._fits = fits
        self._last = last
        self._cgroup = cgroup
        self._holds_vm = plan.cgroup.vm
        given = plan.spec.get("linux", {}).get("resources") or {}
        on_host = {field: value for field in ("cpus", "mems") if (value := getattr(plan.cgroup.limits, field))}
        self._limits: Document = given | {"cpu": (given.get("cpu") or {}) | on_host}
        #: For `hawse update`, which asks for nothing where nothing changes.
        self._state["limits"] = limits_of(self._limits)
        #: What the host and the guest have set; nothing is known of it after a failure.
        self._on_host: HostLimits | None = host_limits(self._limits, vm=self._holds_vm)
        self._in_guest = resources.for_guest(self._limits)
        self._changed = asyncio.Event()
        self._kills = 0
        self._ended = False
        self._told: float | None = None
        self._telling: asyncio.TimerHandle | None = None

    @property
    def placed(self) -> tuple[str, str]:
        """The lists of the host's CPUs and memory nodes that it may use, "" for none."""
        cpu = self._limits["cpu"]
        return cpu.get("cpus") or "", cpu.get("mems") or ""

    async def answer(self, method: str, params: Document) -> object:
        """One of the monitor's methods that ask. Raises :class:`StateError` for a container that has ended."""
        self._check_lives()
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
        """The guest's kernel has killed so many of its processes for want of memory."""
        if kills <= max(self._kills, self._state.get("oomKills", 0)):
            return
        if not self._state.get("oomKills", 0) and not self._kills:
            # Once: engines ask whether, not how often, and how often is the guest's to say.
            self._processes.hold(self._name, self._record_oom())
        self._kills = kills
        # At most so often, since each is a write to the disk and an event of the engine's.
        loop = asyncio.get_running_loop()
        if self._told is None or loop.time() - self._told >= _OOM_SECONDS:
            self._tell_oom()
        elif self._telling is None:
            self._telling = loop.call_at(self._told + _OOM_SECONDS, self._tell_oom)

    def end(self) -> None:
        """The container has ended: who waits for something of it is told."""
        self._ended = True
        if self._telling is not None:
            self._telling.cancel()
            self._tell_oom()
        self._wake()

    def _tell_oom(self) -> None:
        self._telling, self._told = None, asyncio.get_running_loop().time()
        self._state["oomKills"] = self._kills
        self._write()
        self._wake()

    async def _record_oom(self) -> None:
        try:
            await asyncio.to_thread(self._cgroup.record_oom)
        except OSError as error:
            print(f"the host's cgroup does not tell of a kill for memory: {error}", file=sys.stderr)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _await_oom(self, seen: int, seconds: float) -> int:
        """How many kills there were, as soon as they are more than ``seen``, and after ``seconds`` at the latest."""
        with suppress(TimeoutError):
            async with asyncio.timeout(min(seconds, _LONGEST_WAIT)):
                while self._state.get("oomKills", 0) <= seen and not self._ended:
                    await self._changed.wait()
        return int(self._state.get("oomKills", 0))

    def _check_lives(self) -> None:
        if self._state["status"] not in (CREATED, RUNNING, PAUSED):
            raise StateError(f"container not running: {self._name} is {self._state['status']}")

    async def update(self, wanted: object) -> list[str]:
        """Have other limits, on the host and in the guest, as far as they change; what to warn of.

        Raises StateError, ConfigError, HostError or VmError.
        """
        self._check_lives()
        merged = resources.merge(wanted, self._limits)
        self._check_lists(merged)
        warnings: list[str] = []
        limit = (merged.get("memory") or {}).get("limit") or 0
        if limit != ((self._limits.get("memory") or {}).get("limit") or 0):
            warnings = self._fits(limit)
        on_host = host_limits(merged, vm=self._holds_vm)
        if on_host == self._on_host:
            await self._update_guest(merged)
        else:
            before, self._on_host = self._on_host, None
            self._keep(None)
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
        self._keep(merged)
        return warnings

    async def _update_guest(self, merged: Document) -> None:
        in_guest = resources.for_guest(merged)
        if changed := resources.difference(self._in_guest, in_guest):
            self._in_guest = {}
            self._keep(None)
            await self._processes.call(Update(container=self._name, resources=changed))
            self._in_guest = in_guest

    async def _restore(self, values: dict[str, str], failure: HawseError) -> None:
        """Undo what was changed on the host, as runc does where an update fails. Raises the failure with what remains
        of that."""
        try:
            await asyncio.to_thread(self._cgroup.restore, values)
        except HostError as problem:
            failure.message += f"; and then {problem.message}"
            raise failure from None

    def _check_lists(self, merged: Document) -> None:
        """Raise :class:`ConfigError` for new lists of CPUs or memory nodes that `create` refuses, too."""
        for field, kind in (("cpus", "cpu"), ("mems", "node")):
            text = merged["cpu"].get(field) or ""
            if text != (self._limits["cpu"].get(field) or ""):
                cpusets.check("update: linux.resources", field, text, last=self._last(kind))

    def _keep(self, limits: Document | None) -> None:
        """Put limits on record, None for unknown ones."""
        kept = None if limits is None else limits_of(limits)
        if self._state.get("limits") != kept:
            self._state["limits"] = kept
            self._write()
