"""One running sandbox: its machine, the containers in it, and what is acquired for those that join it later."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from hawse.errors import HawseError, StateError
from hawse.host.cgroup.control import ControlCgroup
from hawse.host.cgroup.sandbox_cgroup import HostCgroup
from hawse.host.mounts.bind_sources import Source
from hawse.json_text import Document
from hawse.linux import oom_score
from hawse.monitor.agent.calls import ForgetMounts, LookAtMounts, Trace
from hawse.monitor.container import Container
from hawse.monitor.cpu_boost import Hurry
from hawse.monitor.deadlines import Deadlines
from hawse.monitor.devices.claims import Claims
from hawse.monitor.devices.disks import Disks
from hawse.monitor.joined_namespaces import own_paths, owner_of
from hawse.monitor.members import Member, Members
from hawse.monitor.network import host_sockets, name_servers
from hawse.monitor.network.announced import Announced
from hawse.monitor.network.forwards import Forwards
from hawse.monitor.network.host_network import Network
from hawse.monitor.network.host_sockets import HostSockets
from hawse.monitor.network.name_servers import NameServers
from hawse.monitor.network.nics import Nics
from hawse.monitor.placement import Lists, Placement
from hawse.monitor.processes.processes import Processes
from hawse.monitor.share.root import ShareRoot
from hawse.notes import Notes, warning
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


class Sandbox:
    """Everything here runs in the monitor's one event loop."""

    def __init__(self, plan: SandboxPlan, share: ShareRoot, network: Network, store: Store, steps: Steps) -> None:
        self.plan = plan
        self._share = share
        self.claims = Claims(plan.ports)
        self.disks = Disks(self.claims, seconds=plan.machine.device_seconds)
        self.nics = Nics(plan, network, self.claims)
        places = {name: f"{share.directory}/{place.path}" for name, place in share.places(plan.container.id).items()}
        self._name_servers = NameServers(plan.container, network, places)
        self.finished = asyncio.Event()
        self._furnished = asyncio.Event()
        self._hooked = asyncio.Event()
        self._store = store
        self._steps = steps
        self._seconds = plan.machine.device_seconds
        # As patient as with devices: without KVM crun is as slow as everything else in the guest.
        self.processes = Processes(seconds=max(_LEAST_CALL_SECONDS, self._seconds))
        self._forwards = Forwards(network, self.processes)
        self._dials = Announced(
            self.processes, HostSockets(self._open_socket).connect, what="sockets of the host", most=host_sockets.MOST
        )
        self._queries = Announced(
            self.processes, self._name_servers.connect, what="name servers", most=name_servers.MOST
        )
        cgroup = HostCgroup(plan.container.cgroup, store.path)
        self._placement = Placement(cgroup, self._placed)
        self.first = self._make(plan.container, store, INIT_KEY, cgroup)
        self._members = Members(Member(self.first, store))
        self._machine: Machine | None = None
        self._watching: asyncio.Task[None] | None = None
        self._start = asyncio.Lock()
        self._score = plan.container.oom_score_adj
        self.control = ControlCgroup(plan.container.cgroup.path, store.path)
        self._hurry = Hurry(self.control, self._programs)
        if self.control.is_apart:
            self.processes.await_proxy_exit = self._hurry.see_off
        patience = 0 if plan.machine.shape.accel == "kvm" else self._seconds
        self._deadlines = Deadlines(self.processes, self._hurry, seconds=patience, give_up=self._give_up)

    def find(self, name: str) -> Container:
        """The container. Raises :class:`NotFoundError` in runc's words."""
        return self._members.find(name).container

    @property
    def room(self) -> Room:
        """What the VM still has for further containers."""
        return Room(
            spares=self.claims.spares,
            disks=self.disks.plugged,
            plugs=self.claims.shareable,
            native=[group for member in self._members for group in member.container.plan.native],
            memory_mib=self.plan.machine.shape.memory_mib,
            label=self.plan.machine.label,
            hugepages_mib=sum(member.container.plan.hugepages_mib for member in self._members),
            overlays=self._share.overlays,
        )

    async def create(self, machine: Machine) -> Notes:
        """Make the first container, whose devices are there; with its end the sandbox ends."""
        self._machine = machine
        self.processes.begin(machine.link)
        machine.link.on_oom = self._note_oom
        machine.link.on_notify = self._take_notice
        machine.link.on_dial = self._dials.handle
        machine.link.on_query = self._queries.handle
        if any(self.plan.container.hooks.get(kind) for kind in CREATION):
            self._furnished.set()
            await self._hooked.wait()
        notes = await self._create_in_guest(self.first, {}, connect=self._connect)
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
        """Create one more container. ``sources`` are its shared mounts, in the order of ``plan.shares``, and ``key`` is
        the key of its first process.

        If a step fails, the steps before it are undone. Raises StateError, ConfigError, DeviceError or VmError.
        """
        await self._retry_unplug(plan.plugs)
        if self._machine is None or self.first.status not in (CREATED, RUNNING):
            raise StateError(f"sandbox {self.plan.container.id} is {self.first.status}: no container can join it")
        if plan.id in self._members:
            raise StateError(f"container with given ID already exists: {plan.id}")
        joins = self._find_joins(plan) if plan.joins else {}
        store = Store(self._store.root, plan.id)
        container = self._make(plan, store, key, HostCgroup(plan.cgroup, store.path))
        member = Member(container, store)
        member.undo.push_async_callback(self._placement.follow)
        member.undo.callback(self._rate)
        member.undo.callback(container.attachments.release_claims)
        self._members.add(member)
        member.undo.callback(self._members.remove, member)
        member.undo.callback(container.end)
        try:
            return await member.create(self._join(member, sources, joins))
        except HawseError as failure:
            try:
                await member.release()
            except HawseError as problem:
                raise failure.followed_by(problem) from None
            raise
        except asyncio.CancelledError:
            await member.release()
            task = asyncio.current_task()
            if task is not None and not task.cancelling():
                raise StateError(f"container {plan.id} was deleted while it was created") from None
            raise
        except BaseException:
            await member.release()
            raise

    async def attach(self, name: str, wanted: Attachment) -> list[Document]:
        """Give a container one group more; its entries of the state. Raises as :meth:`Container.attach`."""
        await self._retry_unplug(wanted.plugs)
        return await self.find(name).attach(wanted)

    async def update(self, name: str, resources: Document) -> list[str]:
        """Change a container's limits; what to warn of. Raises ConfigError, HostError, StateError or VmError."""
        warnings = await self.find(name).usage.update(resources)
        return [*warnings, *await self._placement.follow()]

    async def remove(self, name: str) -> None:
        """Delete a container, also one that is being created; the sandbox ends with the first one.

        Raises :class:`DeviceError` for a device that the guest does not release.
        """
        if self._members.is_deleted(name):
            async with self._hurry.waited_for():
                await self._members.release_devices(name)
            return
        member = self._members.find(name)
        if member is self._members.first:
            self.finished.set()
            return
        async with self._hurry.waited_for():
            await member.cancel_creation()
            await member.release()

    def hurry(self) -> None:
        """It is to end: its programs get the CPU time that this takes."""
        self._hurry.end()

    def lose(self, reason: HawseError) -> None:
        """The virtual machine ended before its containers did."""
        for member in self._members:
            member.container.lose(reason)

    async def leave(self) -> None:
        """The VM has ended and holds nothing of the host: restore the host's functions."""
        await self._members.restore_functions()

    def end(self) -> None:
        """The virtual machine is gone: nothing runs any more."""
        self._forwards.end()
        self.nics.end()
        self._dials.end()
        self._queries.end()
        self._name_servers.end()
        with ExitStack() as each:  # whatever becomes of the others
            for member in self._members:
                each.callback(member.container.end)
        self._deadlines.end()
        if self._watching is not None:
            self._watching.cancel()
        self.finished.set()

    def _make(self, plan: ContainerPlan, store: Store, key: str, cgroup: HostCgroup) -> Container:
        return Container(
            plan, store, self.processes, self.claims, cgroup, key=key, seconds=self._seconds,
            sandbox=self.plan.container.id, disks=self.disks, doom=self._doom, fits=self._check_memory,
        )  # fmt: skip

    def _check_memory(self, limit: int) -> list[str]:
        """Whether the machine can give a container a new limit; what to warn of. Raises :class:`ConfigError`."""
        return self.room.check_memory(
            "update: memory.limit", limit, host_mib=host_size()["host_mib"], pod=self.plan.pod
        )

    def _placed(self) -> tuple[Lists, Iterable[Lists]]:
        """The lists of the host's CPUs and memory nodes of the first container, and of those that have joined."""
        joined = [member.container for member in self._members.joined if member.container.status != STOPPED]
        return self.first.usage.placed, [container.usage.placed for container in joined]

    def _doom(self, container: Container) -> None:
        self._deadlines.begin(container, first=container is self.first)

    def _give_up(self, reason: HawseError) -> None:
        if self._machine is not None:
            self._machine.give_up(reason)

    async def _join(self, member: Member, sources: Sequence[Source], joins: dict[str, str]) -> Notes:
        """Create a container, with the undo of each step on the member's stack; what to log."""
        assert self._machine is not None
        container, undo = member.container, member.undo
        undo.push_async_callback(member.restore_functions)
        await member.bind_functions()
        undo.callback(self._share.remove, member.name)
        warnings = self._share.place(member.name, container.plan.shares, sources)
        undo.push_async_callback(self._forget_mounts, member.name)
        undo.push_async_callback(container.remove)
        await container.begin(self._machine.qmp, self._machine.link)
        warnings += await self._placement.follow()
        notes = [*(warning(text) for text in warnings), *self._rate()]
        return [*notes, *await self._create_in_guest(container, joins)]

    async def _create_in_guest(
        self,
        container: Container,
        joins: dict[str, str],
        *,
        connect: Callable[[Process], Awaitable[Notes]] | None = None,
    ) -> Notes:
        """Create a container whose devices are in the VM and whose files are in the share; what to log."""
        name = container.plan.id
        await self._look_at_mounts(name)
        return await container.create(joins, places=self._share.places(name), connect=connect)

    async def _retry_unplug(self, plugs: Sequence[PlugStep]) -> None:
        """Ask the guest again for groups that it has kept after another container, which may be deleted.

        The host's drivers stay: who is to have a group was planned with those that it has now.
        """
        groups = {plug.group for plug in plugs if not plug.shared}
        for member in self._members.with_devices:
            await member.container.attachments.retry_unplug(groups)

    def _programs(self) -> list[Process]:
        return self._machine.processes() if self._machine is not None else []

    def _rate(self) -> Notes:
        """Give the virtual machine the oom_score_adj of its containers; what to warn of."""
        others = [member.container.plan.oom_score_adj for member in self._members.joined]
        score = oom_score.of_vm(self._score, others)
        if score == self._score:
            return []
        for process in self._programs():
            try:
                if process.is_alive():
                    oom_score.write(score, process.pid)
            except OSError:
                return [warning(oom_score.warning(score, self._score))]
        self._score = score
        return []

    async def _forget_mounts(self, name: str) -> None:
        """Let the guest unmount the directories that no container uses: the host keeps each open until then."""
        if places := self._share.retire(name):
            with suppress(HawseError):  # the VM has ended, and they with it
                await self.processes.call(ForgetMounts(paths=places))

    async def _look_at_mounts(self, name: str) -> None:
        """Let the guest mount the container's mounts, and the mounts below them."""
        if paths := self._share.mounts(name):
            await self.processes.call(LookAtMounts(paths=paths))

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
            await self._name_servers.serve(self._machine.link)
        self.first.show_network(self.nics.state_entries)
        return notes

    def _note_oom(self, container: str, kills: int) -> None:
        if found := self._members.get(container):
            found.usage.note_oom(kills)

    def _open_socket(self, container: str, name: str) -> int:
        """A descriptor of a socket that a container has forwarded. Raises LookupError and OSError."""
        found = self._members.get(container)
        if found is None or name not in found.plan.sockets:
            raise KeyError(name)
        return self._share.open(container, name)

    def _take_notice(self, container: str, text: str) -> None:
        if found := self._members.get(container):
            found.notices.handle(text)

    async def _await_end(self) -> None:
        await self.first.stopped.wait()
        async with self._start:  # of a program that ended at once the start is answered before the monitor's end
            self.finished.set()

    def _find_joins(self, plan: ContainerPlan) -> dict[str, str]:
        """The containers whose namespaces a new one is to have, by kind. Raises :class:`ConfigError`.

        A container that ends meanwhile, whose pid is then another's, is refused by the agent: it has ended there too.
        """
        pids = {member.name: member.container.pid for member in self._members}
        own = own_paths(self.plan.container.bundle)
        return {
            kind: owner_of(kind, path, pids=pids, first=self.plan.container.id, own=own)
            for kind, path in plan.joins.items()
        }

    async def _draw_timeline(self) -> None:
        """The start is complete: the guest's steps are added to ours, and the trace is written."""
        assert self._machine is not None
        with suppress(HawseError):
            taken = await self.processes.call(Trace())
            self._steps.add_guest(taken, offset=self._machine.link.clock_offset)
        timeline.write(self.plan.timeline, self._steps.done, name=self.plan.container.id)
