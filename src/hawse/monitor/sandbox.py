"""One running sandbox: its VM, its containers, and the resources of containers that join it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from hawse.errors import HawseError, StateError
from hawse.host.cgroup.control_cgroup import ControlCgroup
from hawse.host.cgroup.sandbox_cgroup import HostCgroup
from hawse.host.mounts.open_sources import Source
from hawse.json_text import Document
from hawse.linux import oom_score
from hawse.monitor.agent.calls import Automount, Trace, Unmount
from hawse.monitor.container import Container
from hawse.monitor.cpu_boost import CpuBoost
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
from hawse.monitor.processes.process_table import Processes
from hawse.monitor.share.share_root import ShareRoot
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

#: The key with which the proxy of the first container's init process connects.
INIT_KEY = "init"
_LEAST_CALL_SECONDS = 60.0


class Sandbox:
    """The sandbox, whose methods run in the monitor's event loop."""

    def __init__(self, plan: SandboxPlan, share: ShareRoot, network: Network, store: Store, steps: Steps) -> None:
        self.plan = plan
        self._share = share
        self.claims = Claims(plan.ports)
        self.disks = Disks(self.claims, seconds=plan.machine.device_seconds)
        self.nics = Nics(plan, network, self.claims)
        places = {name: f"{share.directory}/{place.path}" for name, place in share.places(plan.container.id).items()}
        self._name_servers = NameServers(plan.container, network, places)
        self.finished = asyncio.Event()
        self._vm_ready = asyncio.Event()
        self._hooks_done = asyncio.Event()
        self._store = store
        self._steps = steps
        self._seconds = plan.machine.device_seconds
        # At least the timeout of devices: without KVM, crun in the guest is slow as well.
        self.processes = Processes(seconds=max(_LEAST_CALL_SECONDS, self._seconds))
        self._forwards = Forwards(network, self.processes)
        self._dials = Announced(
            self.processes, HostSockets(self._open_socket).connect, what="sockets of the host", most=host_sockets.MOST
        )
        self._queries = Announced(
            self.processes, self._name_servers.connect, what="name servers", most=name_servers.MOST,
            idle=name_servers.IDLE_SECONDS,
        )  # fmt: skip
        cgroup = HostCgroup(plan.container.cgroup, store.path)
        self._placement = Placement(cgroup, self._cpusets)
        self.first = self._make(plan.container, store, INIT_KEY, cgroup)
        self._members = Members(Member(self.first, store))
        self._machine: Machine | None = None
        self._watching: asyncio.Task[None] | None = None
        self._start = asyncio.Lock()
        self._score = plan.container.oom_score_adj
        self.control = ControlCgroup(plan.container.cgroup.path, store.path)
        self._boost = CpuBoost(self.control, self._programs)
        if self.control.is_apart:
            self.processes.await_proxy_exit = self._boost.await_exit
        patience = 0 if plan.machine.shape.accel == "kvm" else self._seconds
        self._deadlines = Deadlines(self.processes, self._boost, seconds=patience, fail_vm=self._fail_vm)

    def find(self, name: str) -> Container:
        """Find a container. Raises :class:`NotFoundError` with runc's message."""
        return self._members.find(name).container

    @property
    def room(self) -> Room:
        """The VM's remaining capacity for further containers."""
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
        """Create the first container, whose devices are plugged. The sandbox ends with it."""
        self._machine = machine
        self.processes.begin(machine.link)
        machine.link.on_oom = self._note_oom
        machine.link.on_notify = self._handle_notification
        machine.link.on_dial = self._dials.handle
        machine.link.on_query = self._queries.handle
        if any(self.plan.container.hooks.get(kind) for kind in CREATION):
            self._vm_ready.set()
            await self._hooks_done.wait()
        notes = await self._create_in_guest(self.first, {}, connect=self._connect)
        if self.plan.pod:
            notes += self._forwards.begin()
        self._watching = asyncio.create_task(self._await_end())
        return notes

    async def await_machine(self) -> None:
        """Wait until the VM runs: the hooks that precede the first container run then."""
        await self._vm_ready.wait()

    def go_on(self) -> None:
        """Continue the creation: these hooks have run."""
        self._hooks_done.set()

    async def start(self, name: str) -> Notes:
        """Start a container. Returns notes to log. Raises :class:`StateError`, and errors of new network interfaces."""
        container = self.find(name)
        if container is not self.first:
            return await container.start()
        async with self._start:
            with self._steps.span(GUEST, "container started"):
                notes = await container.start(connect=self._plug_new_interfaces)
            if self.plan.timeline:
                await self._draw_timeline()
            return notes

    async def add(self, plan: ContainerPlan, sources: Sequence[Source], *, key: str) -> Notes:
        """Create one more container. ``sources`` are its shared mounts, in the order of ``plan.shares``. ``key`` is the
        key of its init process.

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
        member.undo.push_async_callback(self._placement.update)
        member.undo.callback(self._update_oom_score)
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

    async def attach(self, name: str, attachment: Attachment) -> list[Document]:
        """Attach one more group to a container. Returns its entries of the state. Raises as
        :meth:`Container.attach`."""
        await self._retry_unplug(attachment.plugs)
        return await self.find(name).attach(attachment)

    async def update(self, name: str, resources: Document) -> list[str]:
        """Change a container's limits. Returns warnings. Raises ConfigError, HostError, StateError or VmError."""
        warnings = await self.find(name).usage.update(resources)
        return [*warnings, *await self._placement.update()]

    async def remove(self, name: str) -> None:
        """Delete a container, even if its creation is not complete. The sandbox ends with the first container.

        Raises :class:`DeviceError` for a device that the guest does not release.
        """
        if self._members.is_deleted(name):
            async with self._boost.while_waiting():
                await self._members.release_devices(name)
            return
        self._members.forget_unrestored(name)
        member = self._members.find(name)
        if member is self._members.first:
            self.finished.set()
            return
        async with self._boost.while_waiting():
            await member.cancel_creation()
            await member.release()

    def boost(self) -> None:
        """Boost the programs of a sandbox that ends."""
        self._boost.end()

    def record_failure(self, reason: HawseError) -> None:
        """Record in the state of each container that the VM ended before it."""
        for member in self._members:
            member.container.record_failure(reason)

    async def restore_functions(self) -> None:
        """Bind the host's functions to their previous drivers, after the VM's end."""
        await self._members.restore_functions()

    def end(self) -> None:
        """Mark all containers as ended, and release network resources, after the VM's end."""
        self._forwards.end()
        self.nics.end()
        self._dials.end()
        self._queries.end()
        self._name_servers.end()
        with ExitStack() as each:  # all of them, even if one fails
            for member in self._members:
                each.callback(member.container.end)
        self._deadlines.end()
        if self._watching is not None:
            self._watching.cancel()
        self.finished.set()

    def _make(self, plan: ContainerPlan, store: Store, key: str, cgroup: HostCgroup) -> Container:
        return Container(
            plan, store, self.processes, self.claims, cgroup, key=key, seconds=self._seconds,
            sandbox=self.plan.container.id, disks=self.disks, on_kill=self._begin_deadline,
            check_memory=self._check_memory,
        )  # fmt: skip

    def _check_memory(self, limit: int) -> list[str]:
        """Check a container's new memory limit against the VM's size. Returns warnings. Raises :class:`ConfigError`."""
        return self.room.check_memory(
            "update: memory.limit", limit, host_mib=host_size()["host_mib"], pod=self.plan.pod
        )

    def _cpusets(self) -> tuple[Lists, Iterable[Lists]]:
        """The lists of CPUs and memory nodes of the first container, and those of the other running containers."""
        joined = [member.container for member in self._members.joined if member.container.status != STOPPED]
        return self.first.usage.cpusets, [container.usage.cpusets for container in joined]

    def _begin_deadline(self, container: Container) -> None:
        self._deadlines.begin(container, first=container is self.first)

    def _fail_vm(self, reason: HawseError) -> None:
        if self._machine is not None:
            self._machine.fail(reason)

    async def _join(self, member: Member, sources: Sequence[Source], joins: dict[str, str]) -> Notes:
        """Create a container, with the undo of each step on the member's stack. Returns notes to log."""
        assert self._machine is not None
        container, undo = member.container, member.undo
        undo.push_async_callback(member.restore_functions)
        await member.bind_functions()
        undo.callback(self._share.remove, member.name)
        warnings = self._share.place(member.name, container.plan.shares, sources)
        undo.push_async_callback(self._unmount, member.name)
        undo.push_async_callback(container.remove)
        await container.begin(self._machine.qmp, self._machine.link)
        warnings += await self._placement.update()
        notes = [*(warning(text) for text in warnings), *self._update_oom_score()]
        return [*notes, *await self._create_in_guest(container, joins)]

    async def _create_in_guest(
        self,
        container: Container,
        joins: dict[str, str],
        *,
        connect: Callable[[Process], Awaitable[Notes]] | None = None,
    ) -> Notes:
        """Create a container, whose devices are plugged and whose files are shared. Returns notes to log."""
        name = container.plan.id
        await self._automount(name)
        return await container.create(joins, places=self._share.places(name), connect=connect)

    async def _retry_unplug(self, plugs: Sequence[PlugStep]) -> None:
        """Retry to unplug groups that the guest kept after another container, which may be deleted.

        The drivers on the host stay bound, since the plan of the new container is based on them.
        """
        groups = {plug.group for plug in plugs if not plug.shared}
        for member in self._members.with_devices:
            await member.container.attachments.retry_unplug(groups)

    def _programs(self) -> list[Process]:
        return self._machine.processes() if self._machine is not None else []

    def _update_oom_score(self) -> Notes:
        """Set the VM's oom_score_adj from those of its containers. Returns warnings."""
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

    async def _unmount(self, name: str) -> None:
        """Ask the guest to unmount directories that no container uses, since virtiofsd keeps them open until then."""
        if places := self._share.retire(name):
            with suppress(HawseError):  # the mounts have ended with the VM
                await self.processes.call(Unmount(paths=places))

    async def _automount(self, name: str) -> None:
        """Ask the guest to open the container's mounts and those below them, which mounts them."""
        if paths := self._share.mounts(name):
            await self.processes.call(Automount(paths=paths))

    async def _connect(self, process: Process) -> Notes:
        """Plug the interfaces in the namespace of the first proxy, which hooks may have created."""
        self.nics.network.adopt(process)
        return await self._plug_new_interfaces()

    async def _plug_new_interfaces(self) -> Notes:
        """Plug new interfaces of the namespace into the guest."""
        assert self._machine is not None
        self.nics.network.look()
        with self._steps.span(NETWORK, "connected again"):
            notes = await self.nics.plug(self._machine.qmp, self._machine.link)
            await self._name_servers.serve(self._machine.link)
        self.first.record_network(self.nics.state_entries)
        return notes

    def _note_oom(self, name: str, kills: int) -> None:
        if container := self._members.get(name):
            container.usage.note_oom(kills)

    def _open_socket(self, container: str, name: str) -> int:
        """Open a forwarded socket of a container, and return its descriptor. Raises LookupError and OSError."""
        owner = self._members.get(container)
        if owner is None or name not in owner.plan.sockets:
            raise KeyError(name)
        return self._share.open(container, name)

    def _handle_notification(self, name: str, text: str) -> None:
        if container := self._members.get(name):
            container.notices.handle(text)

    async def _await_end(self) -> None:
        await self.first.stopped.wait()
        async with self._start:  # answer the start before the monitor's end, even if the program exits at once
            self.finished.set()

    def _find_joins(self, plan: ContainerPlan) -> dict[str, str]:
        """The containers whose namespaces a new container joins, by kind. Raises :class:`ConfigError`.

        If such a container ends meanwhile, and the kernel reuses its pid, the agent refuses the join.
        """
        pids = {member.name: member.container.pid for member in self._members}
        own = own_paths(self.plan.container.bundle)
        return {
            kind: owner_of(kind, path, pids=pids, first=self.plan.container.id, own=own)
            for kind, path in plan.joins.items()
        }

    async def _draw_timeline(self) -> None:
        """Add the guest's steps to the host's, and write the trace, after the start."""
        assert self._machine is not None
        with suppress(HawseError):
            guest_steps = await self.processes.call(Trace())
            self._steps.add_guest(guest_steps, offset=self._machine.link.clock_offset)
        timeline.write(self.plan.timeline, self._steps.done, name=self.plan.container.id)
