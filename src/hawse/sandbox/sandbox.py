"""One running sandbox: its machine, the containers in it, and what is acquired for those that join it later."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING

from hawse.errors import HawseError, NotFoundError, StateError
from hawse.oci.hooks import CREATION
from hawse.sandbox import share, timeline
from hawse.sandbox.bound import give_back, take
from hawse.sandbox.claims import Claims
from hawse.sandbox.container import Container
from hawse.sandbox.network import Network
from hawse.sandbox.nics import Nics
from hawse.sandbox.plan import ContainerPlan, SandboxPlan
from hawse.sandbox.processes import Processes
from hawse.sandbox.resolver import Resolver
from hawse.sandbox.state import CREATED, RUNNING, Store
from hawse.sandbox.steps import GUEST, NETWORK, Steps

if TYPE_CHECKING:
    from hawse.sandbox.machine import Machine

#: By which the proxy of the first container's first process announces itself.
INIT_KEY = "init"
_LEAST_CALL_SECONDS = 60.0
_PROCESS_NAMESPACE = re.compile(r"/proc/([1-9][0-9]{0,9})/ns/[a-z]+")

Notes = list[tuple[str, str]]


class Sandbox:
    """Everything here runs in the monitor's one event loop."""

    def __init__(self, plan: SandboxPlan, network: Network, store: Store, steps: Steps) -> None:
        self.plan = plan
        self.claims = Claims(plan.ports)
        self.nics = Nics(plan, network, self.claims)
        self._resolver = Resolver(plan, network, f"{store.path}/share/{plan.id}")
        self.finished = asyncio.Event()
        self._furnished = asyncio.Event()
        self._hooked = asyncio.Event()
        self._store = store
        self._steps = steps
        self._seconds = plan.machine.device_seconds
        # As patient as with devices: without KVM crun is as slow as everything else in the guest.
        self.processes = Processes(seconds=max(_LEAST_CALL_SECONDS, self._seconds))
        self.first = self._make(plan, store, INIT_KEY)
        self._containers = {plan.id: self.first}
        self._undo: dict[str, AsyncExitStack] = {}
        self._owing: dict[str, Store] = {}  # containers that functions of the host were bound for
        self._machine: Machine | None = None
        self._watching: asyncio.Task[None] | None = None

    def find(self, name: str) -> Container:
        """The container. Raises :class:`NotFoundError` in runc's words."""
        try:
            return self._containers[name]
        except KeyError:
            raise NotFoundError(f"container does not exist: {name[:255]}") from None

    async def create(self, machine: Machine) -> Notes:
        """Make the first container, whose devices are there; with its end the sandbox ends."""
        self._machine = machine
        self.processes.begin(machine.link)
        machine.link.on_oom = self._note_oom
        if any(self.plan.hooks.get(kind) for kind in CREATION):
            self._furnished.set()
            await self._hooked.wait()
        notes = await self.first.create({}, connect=self._connect)
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
        with self._steps.span(GUEST, "container started"):
            notes = await found.start(connect=self._connect_again)
        if self.plan.timeline:
            await self._draw_timeline()
        return notes

    async def add(self, plan: ContainerPlan, trees: Sequence[int], *, key: str) -> Notes:
        """Make one more container; ``trees`` are descriptors of what it shares, in the order of ``plan.shares``, and
        ``key`` is its first process's.

        Whatever fails, what was done for it is undone. Raises StateError, ConfigError, DeviceError or VmError.
        """
        if self._machine is None or self.first.status not in (CREATED, RUNNING):
            raise StateError(f"sandbox {self.plan.id} is {self.first.status}: no container can join it")
        if plan.id in self._containers:
            raise StateError(f"container with given ID already exists: {plan.id}")
        joins = {kind: self._owner_of(path) for kind, path in plan.joins.items()}
        store = Store(self._store.root, plan.id)
        made = self._make(plan, store, key)
        async with AsyncExitStack() as undo:
            undo.callback(self.claims.release, plan.plugs)
            self._containers[plan.id] = made
            undo.callback(self._containers.pop, plan.id)
            self._owing[plan.id] = store
            undo.push_async_callback(self._give_back, plan.id)
            if plan.binds:
                await asyncio.to_thread(take, plan.binds, store)
            directory = f"{self._store.path}/share/{plan.id}"
            undo.callback(share.unmount, directory)
            share.attach(plan.shares, trees, directory)
            undo.push_async_callback(made.remove)
            await made.attachments.begin(self._machine.qmp, self._machine.link)
            notes = await made.create(joins)
            self._undo[plan.id] = undo.pop_all()
        return notes

    async def remove(self, name: str) -> None:
        """Delete a container; with the first one the sandbox ends. Raises :class:`DeviceError` for what stays."""
        found = self.find(name)
        if found is self.first:
            self.finished.set()
            return
        undo = self._undo.pop(name, None)
        if undo is None:
            raise StateError(f"container {name} is still being created")
        await undo.aclose()

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
        for found in self._containers.values():
            found.end()
        if self._watching is not None:
            self._watching.cancel()
        self.finished.set()

    def _make(self, plan: ContainerPlan, store: Store, key: str) -> Container:
        return Container(plan, store, self.processes, self.claims, key=key, seconds=self._seconds, sandbox=self.plan.id)

    async def _connect(self, pid: int) -> Notes:
        """The first process's proxy is there, and hooks may have brought it interfaces."""
        self.nics.network.adopt(pid)
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

    async def _give_back(self, name: str) -> None:
        await asyncio.to_thread(give_back, self._owing[name])
        del self._owing[name]

    async def _await_end(self) -> None:
        await self.first.stopped.wait()
        self.finished.set()

    def _owner_of(self, path: str) -> str:
        """The container whose namespace that path of the spec is: a process's, or the sandbox's own by any name."""
        match = _PROCESS_NAMESPACE.fullmatch(path)
        pid = int(match[1]) if match else 0
        return next((name for name, found in self._containers.items() if pid and found.pid == pid), self.plan.id)

    async def _draw_timeline(self) -> None:
        """The start is complete: the guest's steps are added to ours, and the trace is written."""
        assert self._machine is not None
        with suppress(HawseError):
            taken = await self.processes.call("trace", {})
            self._steps.add_guest(taken, offset=self._machine.link.clock_offset)
        timeline.write(self.plan.timeline, self._steps.done, name=self.plan.id)
