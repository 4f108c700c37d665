"""One running sandbox: its machine, the containers in it, and what is acquired for those that join it later."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack, ExitStack, suppress
from typing import TYPE_CHECKING, Any

from hawse.errors import HawseError, NotFoundError, StateError, VmError
from hawse.host.cgroup.control import ControlCgroup
from hawse.host.cgroup.sandbox_cgroup import HostCgroup
from hawse.host.mounts.bind_sources import Source
from hawse.host.vfio_functions import give_back, take
from hawse.linux import oom_score
from hawse.monitor.container import Container
from hawse.monitor.cpu_boost import Hurry
from hawse.monitor.devices.claims import Claims
from hawse.monitor.devices.disks import Disks
from hawse.monitor.joined_namespaces import own_paths, owner_of
from hawse.monitor.network.dials import Dials
from hawse.monitor.network.forwards import Forwards
from hawse.monitor.network.host_network import Network
from hawse.monitor.network.nics import Nics
from hawse.monitor.network.resolver import Resolver
from hawse.monitor.placement import Lists, Placement
from hawse.monitor.processes.processes import Processes, whole
from hawse.monitor.share.root import ShareRoot
from hawse.oci.hooks import CREATION
from hawse.plan.capacity import Room
from hawse.plan.model import Attachment, ContainerPlan, PlugStep, SandboxPlan
from hawse.state import timeline
from hawse.state.steps import GUEST, NETWORK, Steps
from hawse.state.store import CREATED, RUNNING, STOPPED, Store
from hawse.vm.size import host_size

if TYPE_CHECKING:
    from hawse.linux.processes import Process
    from hawse.monitor.machine.machine import Machine

#: By which the proxy of the first container's first process announces itself.
INIT_KEY = "init"
_LEAST_CALL_SECONDS = 60.0
#: How long the guest may take to end a container with SIGKILL. The end of the virtual machine then takes 3 s at most.
_KILL_SECONDS = 6.0

Notes = list[tuple[str, str]]


class Sandbox:
    """Everything here runs in the monitor's one event loop."""

    def __init__(self, plan: SandboxPlan, share: ShareRoot, network: Network, store: Store, steps: Steps) -> None:
        self.plan = plan
        self._share = share
        self.claims = Claims(plan.ports)
        self.disks = Disks(self.claims, seconds=plan.machine.device_seconds)
        self.nics = Nics(plan, network, self.claims)
        places = {name: f"{share.directory}/{place.path}" for name, place in share.places(plan.id).items()}
        self._resolver = Resolver(plan, network, places)
        self.finished = asyncio.Event()
        self._furnished = asyncio.Event()
        self._hooked = asyncio.Event()
        self._store = store
        self._steps = steps
        self._seconds = plan.machine.device_seconds
        # As patient as with devices: without KVM crun is as slow as everything else in the guest.
        self.processes = Processes(seconds=max(_LEAST_CALL_SECONDS, self._seconds))
        self._forwards = Forwards(network, self.processes)
        self._dials = Dials(self.processes, self._open_socket)
        cgroup = HostCgroup(plan.cgroup, store.path)
        self._placement = Placement(cgroup, self._placed)
        self.first = self._make(plan, store, INIT_KEY, cgroup)
        self._containers = {plan.id: self.first}
        self._making: dict[str, asyncio.Task[Notes]] = {}
        self._undo: dict[str, AsyncExitStack] = {}
        self._undoing: dict[str, asyncio.Task[None]] = {}
        self._keeping: list[Container] = []  # deleted containers of which the guest has not released a device
        self._owing: dict[str, Store] = {}  # containers that functions of the host were bound for
        self._machine: Machine | None = None
        self._watching: asyncio.Task[None] | None = None
        self._start = asyncio.Lock()
        self._doomed: dict[Container, asyncio.Task[None]] = {}
        self._score = plan.oom_score_adj
        self.control = ControlCgroup(plan.cgroup.path, store.path)
        self._hurry = Hurry(self.control, self._programs)
        if self.control.is_apart:
            self.processes.see_off = self._hurry.see_off

    def find(self, name: str) -> Container:
        """The container. Raises :class:`NotFoundError` in runc's words."""
        try:
            return self._containers[name]
        except KeyError:
            raise NotFoundError(f"container does not exist: {name[:255]}") from None

    @property
    def room(self) -> Room:
        """What there is for others."""
        return Room(
            spares=self.claims.spares,
            disks=self.disks.plugged,
            plugs=self.claims.to_share,
            native=[group for found in self._containers.values() for group in found.plan.native],
            memory_mib=self.plan.machine.memory_mib,
            label=self.plan.machine.label,
            hugepages_mib=sum(found.plan.hugepages_mib for found in self._containers.values()),
            overlays=self._share.overlays,
        )

    async def create(self, machine: Machine) -> Notes:
        """Make the first container, whose devices are there; with its end the sandbox ends."""
        self._machine = machine
        self.processes.begin(machine.link)
        machine.link.on_oom = self._note_oom
        machine.link.on_notify = self._take_notice
        machine.link.on_dial = self._dials.take
        if any(self.plan.hooks.get(kind) for kind in CREATION):
            self._furnished.set()
            await self._hooked.wait()
        await self._look_at_mounts(self.plan.id)
        notes = await self.first.create({}, places=self._share.places(self.plan.id), connect=self._connect)
        if self.plan.pod:
            notes += self._forwards.begin()
        self._watching = asyncio.create_task(self._await_end())
        return notes

    async def await_machine(self) -> None:
        """Wait for the moment of the hooks before the first container: the machine is there."""
        await self._furnished.wait()

    def go_on(self) -> None:
        """Those hooks have run."""
        self._hooked.set()

    async def start(self, name: str) -> Notes:
        """Start a container; what to log. Raises :class:`StateError`, and what a change of its network raises."""
        found = self.find(name)
        if found is not self.first:
            return await found.start()
        async with self._start:
            with self._steps.span(GUEST, "container started"):
                notes = await found.start(connect=self._connect_again)
            if self.plan.timeline:
                await self._draw_timeline()
            return notes

    async def add(self, plan: ContainerPlan, sources: Sequence[Source], *, key: str) -> Notes:
        """Make one more container; ``sources`` are what it shares, in the order of ``plan.shares``, and ``key`` is its
        first process's.

        Whatever fails, what was done for it is undone. Raises StateError, ConfigError, DeviceError or VmError.
        """
        await self._ask_again(plan.plugs)
        if self._machine is None or self.first.status not in (CREATED, RUNNING):
            raise StateError(f"sandbox {self.plan.id} is {self.first.status}: no container can join it")
        if plan.id in self._containers:
            raise StateError(f"container with given ID already exists: {plan.id}")
        joins = self._find_joins(plan) if plan.joins else {}
        store = Store(self._store.root, plan.id)
        made = self._make(plan, store, key, HostCgroup(plan.cgroup, store.path))
        undo = self._undo[plan.id] = AsyncExitStack()
        undo.push_async_callback(self._placement.follow)
        undo.callback(self._rate)
        undo.callback(made.attachments.disclaim)
        self._containers[plan.id] = made
        undo.callback(self._containers.pop, plan.id)
        undo.callback(made.end)
        making = self._making[plan.id] = asyncio.create_task(self._join(made, store, sources, joins, undo))
        making.add_done_callback(lambda _: self._making.pop(plan.id))
        try:
            return await making
        except BaseException as failure:
            await self._take_back(plan.id, failure)
            task = asyncio.current_task()
            if isinstance(failure, asyncio.CancelledError) and task is not None and not task.cancelling():
                raise StateError(f"container {plan.id} was deleted while it was created") from None
            raise

    async def attach(self, name: str, wanted: Attachment) -> list[dict[str, Any]]:
        """Give a container one group more; its entries of the state. Raises as :meth:`Container.attach`."""
        await self._ask_again(wanted.plugs)
        return await self.find(name).attach(wanted)

    async def update(self, name: str, params: dict[str, Any]) -> list[str]:
        """Other limits for a container; what to warn of. Raises ConfigError, HostError, StateError or VmError."""
        warnings = await self.find(name).usage.update(params["resources"])
        return [*warnings, *await self._placement.follow()]

    async def remove(self, name: str) -> None:
        """Delete a container, one that is being made too; with the first one the sandbox ends.

        Raises :class:`DeviceError` for what stays.
        """
        if name not in self._containers and any(kept.plan.id == name for kept in self._keeping):
            async with self._hurry.waited_for():
                await self._release_kept(name)
            return
        found = self.find(name)
        if found is self.first:
            self.finished.set()
            return
        async with self._hurry.waited_for():
            making = self._making.get(name)
            if making is not None:
                making.cancel()
                await asyncio.wait((making,))
            await self._take_back(name)

    def hurry(self) -> None:
        """It is to end: its programs get the CPU time that this takes."""
        self._hurry.end()

    def lose(self, reason: HawseError) -> None:
        """The virtual machine ended before its containers did."""
        for found in self._containers.values():
            found.lose(reason)

    async def leave(self) -> None:
        """With the virtual machine, all that it held of the host is gone: give the rest back."""
        for name in list(self._owing):
            with suppress(HawseError):  # it stays on record, and the container's deletion tries again, and tells
                await self._give_back(name)

    def end(self) -> None:
        """The virtual machine is gone: nothing runs any more."""
        self._forwards.end()
        self.nics.end()
        self._dials.end()
        with ExitStack() as each:  # whatever becomes of the others
            for found in self._containers.values():
                each.callback(found.end)
        for task in (self._watching, *self._doomed.values()):
            if task is not None:
                task.cancel()
        self.finished.set()

    def _make(self, plan: ContainerPlan, store: Store, key: str, cgroup: HostCgroup) -> Container:
        return Container(
            plan, store, self.processes, self.claims, cgroup, key=key, seconds=self._seconds, sandbox=self.plan.id,
            disks=self.disks, doom=self._doom, fits=self._check_memory,
        )  # fmt: skip

    def _check_memory(self, limit: int) -> list[str]:
        """Whether the machine can give a container a new limit; what to warn of. Raises :class:`ConfigError`."""
        return self.room.check_memory(
            "update: memory.limit", limit, host_mib=host_size()["host_mib"], pod=self.plan.pod
        )

    def _placed(self) -> tuple[Lists, Iterable[Lists]]:
        """The lists of the host's CPUs and memory nodes of the first container, and of those that have joined."""
        joined = [found for found in self._containers.values() if found is not self.first and found.status != STOPPED]
        return self.first.usage.placed, [found.usage.placed for found in joined]

    def _doom(self, found: Container) -> None:
        """A container is to end at once: where the guest does not end it, the virtual machine ends."""
        if found not in self._doomed:
            self._doomed[found] = asyncio.create_task(self._see_end(found))
            self._doomed[found].add_done_callback(lambda _: self._doomed.pop(found))

    async def _see_end(self, found: Container) -> None:
        async with self._hurry.waited_for():
            await self._end_in_time(found)

    async def _end_in_time(self, found: Container) -> None:
        seconds = _KILL_SECONDS
        if found is not self.first:
            # The others of its pod would end with it: a guest that is only slow, as without KVM, has more time.
            if self.plan.machine.accel != "kvm":
                seconds = max(seconds, self._seconds)
            if await self._ends(found, seconds):
                return
            with suppress(HawseError):
                call = {"container": found.plan.id, "process": 0, "signal": signal.SIGKILL, "everyone": True}
                await self.processes.call("signal", call, within=_KILL_SECONDS)
        if not await self._ends(found, seconds) and self._machine is not None:
            self._machine.give_up(
                VmError(
                    f"the guest has not ended container {found.plan.id} within {seconds:g} s of SIGKILL",
                    hint="its virtual machine was ended",
                )
            )

    async def _ends(self, found: Container, seconds: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await found.stopped.wait()
        return found.stopped.is_set()

    async def _join(
        self, made: Container, store: Store, sources: Sequence[Source], joins: dict[str, str], undo: AsyncExitStack
    ) -> Notes:
        """Make a container, with what undoes it on the stack; what to log."""
        assert self._machine is not None
        plan = made.plan
        self._owing[plan.id] = store
        undo.push_async_callback(self._give_back, plan.id)
        if plan.binds:
            await whole(asyncio.to_thread(take, plan.binds, store))
        undo.callback(self._share.remove, plan.id)
        warnings = self._share.place(plan.id, plan.shares, sources)
        undo.push_async_callback(self._forget_mounts, plan.id)
        undo.push_async_callback(self._end, made)
        await made.begin(self._machine.qmp, self._machine.link)
        await self._look_at_mounts(plan.id)
        warnings += await self._placement.follow()
        notes = [*(("warning", text) for text in warnings), *self._rate()]
        return [*notes, *await made.create(joins, places=self._share.places(plan.id))]

    async def _end(self, made: Container) -> None:
        try:
            await made.remove()
        finally:
            if made.keeps_devices:
                self._keeping.append(made)

    async def _ask_again(self, plugs: Sequence[PlugStep]) -> None:
        """Ask the guest again for groups that it has kept after another container, whether that is on record or not.

        The host's drivers stay: who is to have a group was planned with those that it has now.
        """
        groups = {plug.group for plug in plugs if not plug.shared}
        for found in [*self._keeping, *self._containers.values()]:
            await found.attachments.ask_again(groups)

    async def _release_kept(self, name: str) -> None:
        """Ask the guest again for the devices of a deleted container. Raises :class:`DeviceError` for what stays."""
        for kept in [kept for kept in self._keeping if kept.plan.id == name]:
            await kept.release_devices()
            if kept in self._keeping:
                self._keeping.remove(kept)
        await self._give_back(name)

    def _programs(self) -> list[Process]:
        return self._machine.processes() if self._machine is not None else []

    def _rate(self) -> Notes:
        """Give the virtual machine the oom_score_adj of its containers; what to warn of."""
        others = [found.plan.oom_score_adj for found in self._containers.values() if found is not self.first]
        score = oom_score.of_vm(self._score, others)
        if score == self._score:
            return []
        for process in self._programs():
            try:
                if process.is_alive():
                    oom_score.write(score, process.pid)
            except OSError:
                return [("warning", oom_score.warning(score, self._score))]
        self._score = score
        return []

    async def _forget_mounts(self, name: str) -> None:
        """Have the guest unmount what no container uses any more: the host keeps each open for so long."""
        if places := self._share.retire(name):
            with suppress(HawseError):  # the virtual machine has ended, and they with it
                await self.processes.call("forget_mounts", {"paths": places})

    async def _look_at_mounts(self, name: str) -> None:
        """Have the guest mount what the container's mounts are, and what is mounted below them."""
        if paths := self._share.mounts(name):
            await self.processes.call("look_at_mounts", {"paths": paths})

    async def _take_back(self, name: str, failure: BaseException | None = None) -> None:
        """Undo what was done for a container: once, to its end, and everybody who asks for it waits for that.

        Raises what fails of it; where it is undone for a failure of hawse's, that tells of it instead.
        """
        undo = self._undo.pop(name, None)
        if undo is not None:
            undoing = self._undoing[name] = asyncio.create_task(undo.aclose())
            undoing.add_done_callback(lambda _: self._undoing.pop(name))
        if name not in self._undoing:
            return
        try:
            await asyncio.shield(self._undoing[name])
        except HawseError as problem:
            if not isinstance(failure, HawseError):
                raise
            failure.message += f"; and then {problem.message}"
            failure.hint = "; ".join(hint for hint in (failure.hint, problem.hint) if hint)

    async def _connect(self, process: Process) -> Notes:
        """The first process's proxy is there, and hooks may have brought it interfaces."""
        self.nics.network.adopt(process)
        return await self._connect_again()

    async def _connect_again(self) -> Notes:
        """Have in the guest what the network has now."""
        assert self._machine is not None
        self.nics.network.look()
        with self._steps.span(NETWORK, "connected again"):
            notes = await self.nics.plug(self._machine.qmp, self._machine.link)
            await self._resolver.serve(self._machine.link)
        self.first.show_network(self.nics.seen)
        return notes

    def _note_oom(self, container: str, kills: int) -> None:
        found = self._containers.get(container)
        if found is not None:
            found.usage.note_oom(kills)

    def _open_socket(self, container: str, name: str) -> int:
        """A descriptor of a socket that a container has forwarded. Raises LookupError and OSError."""
        if name not in (each.name for each in self._containers[container].plan.sockets):
            raise KeyError(name)
        return self._share.open(container, name)

    def _take_notice(self, container: str, text: str) -> None:
        found = self._containers.get(container)
        if found is not None:
            found.notices.take(text)

    async def _give_back(self, name: str) -> None:
        store = self._owing.get(name)
        if store is not None:  # else the sandbox's end came first
            await asyncio.to_thread(give_back, store)
            self._owing.pop(name, None)

    async def _await_end(self) -> None:
        await self.first.stopped.wait()
        async with self._start:  # of a program that ended at once the start is answered before the monitor's end
            self.finished.set()

    def _find_joins(self, plan: ContainerPlan) -> dict[str, str]:
        """The containers whose namespaces a new one is to have, by kind. Raises :class:`ConfigError`.

        A container that ends meanwhile, whose pid is then another's, is refused by the agent: it has ended there too.
        """
        pids = {name: found.pid for name, found in self._containers.items()}
        own = own_paths(self.plan.bundle)
        return {kind: owner_of(kind, path, pids=pids, first=self.plan.id, own=own) for kind, path in plan.joins.items()}

    async def _draw_timeline(self) -> None:
        """The start is complete: the guest's steps are added to ours, and the trace is written."""
        assert self._machine is not None
        with suppress(HawseError):
            taken = await self.processes.call("trace", {})
            self._steps.add_guest(taken, offset=self._machine.link.clock_offset)
        timeline.write(self.plan.timeline, self._steps.done, name=self.plan.id)
