"""One container of a sandbox: its state, processes and devices, and the operations of engines on it."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING

from hawse.errors import HawseError, StateError
from hawse.host.cgroup.sandbox_cgroup import HostCgroup
from hawse.json_text import Document
from hawse.linux.processes import Process
from hawse.monitor.agent.calls import (
    Answer,
    Call,
    Create,
    Delete,
    Exec,
    Freeze,
    GuestSocket,
    SetSysctls,
    SharedBind,
    ShareMemory,
    Start,
)
from hawse.monitor.agent.notifications import Notices
from hawse.monitor.container_state import ContainerState
from hawse.monitor.devices.attachments import Attachments
from hawse.monitor.devices.claims import Claims
from hawse.monitor.devices.disks import Disks
from hawse.monitor.devices.misc_devices import guest_numbers
from hawse.monitor.devices.spec_nodes import with_guest_nodes
from hawse.monitor.guest_hugepages import HugePages
from hawse.monitor.processes.process_table import KILLED, LOST, Processes, uninterrupted
from hawse.monitor.processes.proxy_connections import Proxy
from hawse.monitor.share.exports import NO_PLACES, Place, with_share_paths
from hawse.monitor.usage import Usage
from hawse.nodes import numbers
from hawse.notes import Notes, warning
from hawse.oci.guest.pci_environment import translate
from hawse.oci.process.inherited import Inherited, inherit, inherit_exec
from hawse.plan.model import Attachment, ContainerPlan
from hawse.state.store import CREATED, PAUSED, RUNNING, STOPPED, Store, start_time

if TYPE_CHECKING:
    from hawse.monitor.agent.guest_link import GuestLink
    from hawse.vm.qmp import Qmp

#: Seconds in which the guest must freeze a container. After that, pause fails, and the VM continues.
_PAUSE_SECONDS = 10.0
#: More than the time in which the sandbox ends a VM whose guest does not end a container.
_END_SECONDS = 60.0


class Container:
    """A container, whose methods run in the monitor's event loop."""

    # Large: creates every part of a container.
    def __init__(
        self,
        plan: ContainerPlan,
        store: Store,
        processes: Processes,
        claims: Claims,
        cgroup: HostCgroup,
        *,
        key: str,
        seconds: float,
        sandbox: str,
        disks: Disks | None = None,
        on_kill: Callable[[Container], None] = lambda _container: None,
        check_memory: Callable[[int], list[str]] = lambda _limit: [],
    ) -> None:
        """``key``: the key with which the init process's proxy connects; ``seconds``: the timeout of a device;
        ``sandbox``: the id of the first container; ``disks``: those of the VM. ``on_kill`` is called when the container
        must end at once. ``check_memory`` is called with a new memory limit before it is set.

        Raises :class:`StateError` if another container has claimed a device of the plan, or if the state directory was
        removed.
        """
        self.plan = plan
        self._pages = HugePages(plan, processes)
        self.stopped = asyncio.Event()
        self._processes = processes
        self._key = f"{plan.id}/{key}"
        self._init = 0
        self._proxy: Proxy | None = None
        self._on_kill = on_kill
        self._killed = False
        self._told: set[str] = set()
        self._resumed = RUNNING
        self.notices = Notices(self._notify)
        self._ready = asyncio.Event()
        self._starting = asyncio.Lock()
        self._state = ContainerState(plan, store, sandbox=sandbox)
        self._cgroup = cgroup
        self.usage = Usage(plan, processes, cgroup, self._state, check_memory=check_memory)
        self._state.create()
        # Last, since the caller releases the claims: nothing can fail after this.
        self.attachments = Attachments(plan, claims, seconds=seconds)
        self._disks = disks or Disks(claims, seconds=seconds)
        self._machine: tuple[Qmp, GuestLink] | None = None
        self._disk_numbers: dict[numbers.Numbers, tuple[int, int]] = {}
        self._misc_numbers: dict[tuple[int, int], tuple[int, int]] = {}
        processes.claim(self._key)

    @property
    def status(self) -> str:
        """The status, as in the state."""
        return self._state.status

    @property
    def pid(self) -> int:
        """The pid of the init process's proxy; 0 without a proxy, and after its end."""
        return self._proxy.pid if self._proxy is not None and self._proxy.process.is_alive() else 0

    async def begin(self, qmp: Qmp, link: GuestLink) -> None:
        """Plug the devices of the plan. Raises :class:`DeviceError` naming the device."""
        await self.attachments.begin(qmp, link)
        self._machine = qmp, link
        places = await self._disks.attach(self.plan.disks, owner=self.plan.id, qmp=qmp, link=link)
        self._disk_numbers = {("b", *host): guest for host, guest in places.items()}
        self._misc_numbers = await guest_numbers(self.plan.named, link)

    # Large: the order of the steps, and what undoes each, are read together.
    async def create(
        self,
        joins: dict[str, str],
        *,
        places: Mapping[str, Place] = NO_PLACES,
        connect: Callable[[Process], Awaitable[Notes]] | None = None,
    ) -> Notes:
        """Create the container in the guest, with a proxy for its init process. Returns notes to log.

        ``joins`` are the containers whose namespaces it joins, by kind of namespace. ``places`` are the places of its
        shares, by their names. ``connect`` is called with the proxy's process before the container is created.
        """
        await self._pages.reserve()
        for name, size in self.plan.memory.items():
            await self._processes.call(ShareMemory(name=name, size=size))
        proxy = await self._processes.await_proxy(self._key)
        try:
            warnings = await self._place(proxy)
            if connect is not None:
                warnings += await connect(proxy.process)
            if self.plan.sysctls:
                await self._processes.call(SetSysctls(values=self.plan.sysctls))
            spec, notes = with_guest_nodes(self.plan.spec, self.attachments.nodes, self._misc_numbers)
            spec = self.attachments.add_native_nodes(numbers.move(spec, self._disk_numbers))
            process = inherit(spec["process"], self.plan.inherited)
            spec = spec | {"process": _with_size(process, proxy.size)}
            entries = self.attachments.state_entries()
            spec, binds = with_share_paths(spec, self.plan.id, places)

            def call(process: int, descriptors: list[str]) -> Create:
                return Create(
                    container=self.plan.id,
                    process=process,
                    descriptors=descriptors,
                    spec=spec,
                    devices=entries,
                    joins=joins,
                    notify=self.plan.notify is not None,
                    binds=[SharedBind(name=name, path=path, inode=inode) for name, path, inode in binds],
                    sockets=[
                        GuestSocket(name=name, mode=each.mode, uid=each.uid, gid=each.gid)
                        for name, each in self.plan.sockets.items()
                    ],
                )

            self._init, _ = await self._launch(proxy, call, ended=self._ended, lost=self._begin_end)
            if self.status == STOPPED:
                # Only a hostile agent answers after the exit. The state stays, since the end was reported.
                raise StateError(f"container {self.plan.id} ended while it was created")
        except BaseException:  # also for a cancellation: the command that would end the proxy may have ended
            proxy.exit(LOST)
            raise
        self._proxy = proxy
        self._state.devices = entries
        self._state.annotations = self.plan.annotations | self.attachments.annotations
        started = start_time(proxy.pid)
        # If the proxy has ended, the pid may be reused, and the start time that was read may be another process's.
        self._state.pid, self._state.pid_start = proxy.pid, started if proxy.process.is_alive() else 0
        self._state.set_status(CREATED)
        self._ready.set()
        return [*warnings, *notes]

    async def start(self, *, connect: Callable[[], Awaitable[Notes]] | None = None) -> Notes:
        """runc start, after ``connect``. Raises :class:`StateError` unless the status is created. Returns notes to
        log."""
        async with self._starting:
            self._check_created()
            notes = await connect() if connect is not None else []
            self._check_created()
            # Before the call: a program that ends at once is reported before its start is answered.
            self._state.set_status(RUNNING)
        try:
            await self._processes.call(Start(container=self.plan.id))
        except HawseError:
            if self.status == RUNNING:
                self._state.set_status(CREATED)
            raise
        return notes

    def _check_created(self) -> None:
        if self.status == RUNNING:
            raise StateError(f"cannot start an already running container: {self.plan.id}")
        if self.status == PAUSED:
            raise StateError(f"cannot start a container in the paused state: {self.plan.id}")
        if self.status != CREATED:
            raise StateError(f"cannot start a container that has {self.status}: {self.plan.id}")

    async def kill(self, number: int, *, everyone: bool) -> None:
        """runc kill. Raises :class:`StateError` with runc's "container not running".

        Other processes may outlive the init process if the PID namespace is another container's (pid_namespaces(7)).
        """
        if self.status not in (CREATED, RUNNING, PAUSED) and not (everyone and self.status == STOPPED):
            raise StateError(f"container not running: {self.plan.id}")
        if number != signal.SIGKILL or self.status == STOPPED:
            await self._processes.signal(self.plan.id, self._init, number, everyone=everyone)
            return
        self._begin_end()
        try:
            await self._processes.signal(self.plan.id, self._init, number, everyone=everyone)
        except HawseError:
            # Ignore the agent's error: the host ends the container.
            with suppress(TimeoutError):
                async with asyncio.timeout(_END_SECONDS):
                    await self.stopped.wait()
            if not self.stopped.is_set():
                raise

    async def pause(self) -> None:
        """runc pause. Raises :class:`StateError` unless the container is running or created."""
        if self.status not in (CREATED, RUNNING):
            raise StateError(f"container not running: {self.plan.id} is {self.status}")
        self._resumed = self.status
        await self._processes.call(Freeze(container=self.plan.id, frozen=True), within=_PAUSE_SECONDS)
        if self.status == self._resumed:  # otherwise it has ended meanwhile
            self._state.set_status(PAUSED)

    async def resume(self) -> None:
        """runc resume. Raises :class:`StateError` unless it is paused."""
        if self.status != PAUSED:
            raise StateError(f"container not paused: {self.plan.id} is {self.status}")
        await self._processes.call(Freeze(container=self.plan.id, frozen=False))
        if self.status == PAUSED:
            self._state.set_status(self._resumed)

    async def execute(self, key: str, process: Document, caller: Inherited) -> int:
        """Run one more process for the proxy with this ``key``. The process inherits properties of ``caller``.

        Returns the proxy's pid. Raises :class:`StateError` unless the container is running.
        """
        if self.status == PAUSED:
            raise StateError(f"cannot exec in a paused container: {self.plan.id}", hint="`hawse resume` it first")
        if self.status != RUNNING:
            raise StateError(f"container not running: {self.plan.id}")
        process = inherit_exec(process, caller, container=self.plan.spec["process"])
        process |= {"env": translate(process.get("env") or (), self.attachments.addresses)}
        proxy = await self._processes.await_proxy(f"{self.plan.id}/{key}")
        try:
            for _, text in await self._place(proxy):
                self._tell(text)
            spec = _with_size(process, proxy.size)

            def call(number: int, descriptors: list[str]) -> Exec:
                return Exec(container=self.plan.id, process=number, descriptors=descriptors, spec=spec)

            await self._launch(proxy, call, ended=lambda: None)
        except BaseException:
            proxy.exit(LOST)
            raise
        return proxy.pid

    async def attach(self, attachment: Attachment) -> list[Document]:
        """Attach one more group. Returns the state's entries of its functions."""
        await self._ready.wait()
        self._state.check_alive()
        entries = await self.attachments.attach(attachment)
        self._record_devices()
        return entries

    async def detach(self, group: int, *, force: bool) -> None:
        """Detach a group."""
        await self._ready.wait()
        self._state.check_alive()
        try:
            await self.attachments.detach(group, force=force)
        finally:
            self._record_devices()

    def record_network(self, interfaces: list[Document]) -> None:
        """Save the sandbox's network interfaces in the state."""
        self._state.interfaces = interfaces
        self._state.write()

    async def remove(self) -> None:
        """End the container, and remove it from the guest. Raises :class:`DeviceError` for a device that stays."""
        async with AsyncExitStack() as rest:  # each runs even if the previous one fails
            rest.push_async_callback(self._pages.release)
            rest.push_async_callback(self.release_devices)
            rest.callback(self.end)
            with suppress(HawseError):  # the agent may not have created it yet
                await self._processes.call(Delete(container=self.plan.id))
                self._ended()

    def record_failure(self, reason: HawseError) -> None:
        """Record in the state that the VM ended before the container, and why."""
        if self.status != STOPPED and not self._killed:
            self._state.failure = reason

    def end(self) -> None:
        """Mark the container as ended, and report the exit codes of its processes."""
        # After the init process, the kernel kills the others of its PID namespace. After a VM failure, exit codes are
        # unknown.
        code = KILLED if self.status == STOPPED or self._killed else LOST
        try:
            self._ended()
        finally:
            self._ready.set()
            self._processes.end(code, container=self.plan.id)

    async def release_devices(self) -> None:
        """Unplug devices that no other container uses, and retry those that the guest kept. Raises :class:`DeviceError`
        for devices that stay."""
        async with AsyncExitStack() as rest:
            rest.push_async_callback(self.attachments.end)
            if self._machine is not None and self.plan.disks:
                rest.push_async_callback(self._disks.detach, owner=self.plan.id, qmp=self._machine[0])

    @property
    def keeps_devices(self) -> bool:
        """Whether the guest has not released a device of the container."""
        return self.attachments.keeps or self._disks.keeps(self.plan.id)

    def _ended(self) -> None:
        try:
            if self.status != STOPPED:
                self._state.set_status(STOPPED)
        except OSError as error:  # for example a full disk: readers of the old state see that the process has ended
            print(f"cannot write the state of container {self.plan.id}: {error.strerror}", file=sys.stderr)
        finally:
            self.stopped.set()
            self.notices.end()
            self.usage.end()

    def _notify(self, notice: str) -> None:
        if self._proxy is not None:
            self._proxy.notify(notice)

    def _record_devices(self) -> None:
        if self.status != STOPPED:
            self._state.devices = self.attachments.state_entries()
            self._state.write()

    async def _place(self, proxy: Proxy) -> Notes:
        """Move a proxy to the container's cgroup, which is created if needed. Returns notes to log. Raises
        HostError."""
        if not self.plan.cgroup.path:
            return []
        # In a thread: a move between cgroups of version 1 waits for the kernel's RCU, a scope waits for systemd.
        warnings = await uninterrupted(asyncio.to_thread(self._cgroup.place, proxy.process))
        proxy.placed()
        return [warning(text) for text in warnings]

    def _tell(self, text: str) -> None:
        """Write a warning to monitor.log, each once."""
        if text not in self._told:
            self._told.add(text)
            with suppress(OSError):  # a full disk must not end the process
                print(f"container {self.plan.id}: {text}", file=sys.stderr, flush=True)

    async def _launch(
        self,
        proxy: Proxy,
        make: Callable[[int, list[str]], Call[Answer]],
        *,
        ended: Callable[[], None],
        lost: Callable[[], None] = lambda: None,
    ) -> tuple[int, Answer]:
        return await self._processes.launch(self.plan.id, proxy, make, ended=ended, lost=lost)

    def _begin_end(self) -> None:
        """The container must end soon, whether or not the guest cooperates."""
        self._killed = True
        self._on_kill(self)


def _with_size(process: Document, size: tuple[int, int] | None) -> Document:
    """The process with the size of the engine's terminal: a resize may arrive after the process has read the size."""
    if size is None or not process.get("terminal"):
        return process
    return process | {"consoleSize": {"height": size[0], "width": size[1]}}
