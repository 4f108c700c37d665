"""A running sandbox for tests: the monitor's real objects from monitor.sock to the link; guest and QEMU are fakes."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from hawse.errors import ConfigError, HawseError, NotFoundError, VmError
from hawse.host.mounts.open_sources import Source
from hawse.link import messages
from hawse.link.frames import CALL, EVENT, Decoder, Frame
from hawse.linux.processes import Process
from hawse.monitor.agent.guest_link import GuestLink
from hawse.monitor.machine.machine import Machine
from hawse.monitor.network.host_network import Network
from hawse.monitor.sandbox import INIT_KEY, Sandbox
from hawse.monitor.service import Service
from hawse.monitor.share.exports import Place
from hawse.monitor.share.share_root import ShareRoot
from hawse.notes import Notes
from hawse.oci.guest.share import Share
from hawse.plan.model import ContainerPlan
from hawse.planner.devices.plugs import plug_steps, shape
from hawse.state import sockets
from hawse.state.steps import Steps
from hawse.state.store import Store
from hawse.vfio.node import group_node
from hawse.vm.ports import Port, place
from tests.support import virtual_time
from tests.support.fake_qmp import FakeQmp
from tests.support.groups import BOUND, EDU, plan
from tests.support.plans import changed

#: The key with which the proxy of the second container's first process announces itself.
KEY = "init-of-c2"


class FakeGuest:
    """A fake agent that records its containers' names.

    ``answers``: the result or the error of a method; by default None. A call of a method that is in
    ``held`` is answered once its event is set. ``frames``: received frames that are not calls.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.containers: set[str] = set()
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.frames: list[Frame] = []
        self.held: dict[str, asyncio.Event] = {}
        self.answers: dict[str, Any] = {"bind_vfio": BOUND}
        self._reader, self._writer = reader, writer
        self._answers: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Answer until the link ends."""
        decoder = Decoder()
        while piece := await self._reader.read(65536):
            for frame in decoder.feed(piece):
                if frame[1] == CALL:
                    self._answers.add(asyncio.create_task(self._answer(*messages.decode_call(frame[2]))))
                else:
                    self.frames.append(frame)

    def asked(self, method: str) -> list[dict[str, Any]]:
        """The parameters of every call of a method."""
        return [params for name, params in self.calls if name == method]

    def tell(self, event: str, **params: Any) -> None:
        """Send an event."""
        self.send(messages.encode_event(event, params))

    def send(self, frame: bytes) -> None:
        """Send any frame."""
        self._writer.write(frame)

    async def _answer(self, number: int, method: str, params: dict[str, Any]) -> None:
        self.calls.append((method, params))
        if method in self.held:
            await self.held[method].wait()
        name = params.get("container", "")
        answer = self.answers.get(method)
        if (method == "create") == (name in self.containers) and method in ("create", "delete"):
            answer = VmError(f"agent: {method}: {name} is there, or is not")
        if isinstance(answer, HawseError):
            self.send(messages.encode_error(number, answer))
            return
        if method == "create":
            self.containers.add(name)
        elif method == "delete":
            self.containers.discard(name)
        self.send(messages.encode_result(number, answer))


class Apart(Network):
    """A network that does not count as the host's, without inspection of the test's process.

    ``loopback``: the descriptor of the namespace whose ports are forwarded.
    """

    def __init__(self, directory: str, loopback: int) -> None:
        super().__init__("", directory)
        self._loopback = loopback

    @property
    def namespace(self) -> int:
        return self._loopback

    def adopt(self, process: Process) -> None:
        assert process.pid == os.getpid()


class NoShare(ShareRoot):
    """A share without mounts. ``removed``: the containers that were removed from it. ``mounted``: its answer for the
    mounts of a container."""

    def __init__(self) -> None:
        self.removed: list[str] = []
        self.mounted: dict[str, list[str]] = {}

    @property
    def overlays(self) -> list[str]:
        return []

    def mounts(self, container: str) -> list[str]:
        return self.mounted.get(container, [])

    def place(self, _container: str, shares: Sequence[Share], _sources: Sequence[Source]) -> list[str]:
        for share in shares:
            raise ConfigError(f"cannot share {share.source} with the guest: not here")
        return []

    def places(self, _container: str) -> dict[str, Place]:
        return {}

    def retire(self, _container: str) -> list[str]:
        return []

    def remove(self, container: str) -> None:
        self.removed.append(container)


class ObservedSandbox(Sandbox):
    """A sandbox that records in ``removals`` the containers whose deletion was requested."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.removals: list[str] = []

    async def remove(self, name: str) -> None:
        self.removals.append(name)
        await super().remove(name)


@dataclass
class FakeMachine:
    """The part of a VM's interface that a sandbox uses."""

    link: GuestLink
    qmp: FakeQmp
    processes: Callable[[], list[Process]] = list


@dataclass
class Pod:
    """A sandbox as seen by the command line."""

    sandbox: ObservedSandbox
    guest: FakeGuest
    machine: FakeMachine
    store: Store
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    @property
    def qmp(self) -> FakeQmp:
        """The fake QEMU's QMP."""
        return self.machine.qmp

    async def create_first(self) -> Notes:
        """Create the first container, whose proxy has started; returns the messages to log."""
        await self.announce(f"{self.sandbox.plan.container.id}/{INIT_KEY}")
        return await self.sandbox.create(cast(Machine, self.machine))

    async def call(self, name: str, method: str, **params: Any) -> object:
        """The monitor's answer to a call of the command line."""
        reader, writer = await self.connect()
        writer.write(messages.encode_call(1, method, params | {"container": name}))
        [(_, _, payload)] = Decoder().feed(await reader.read())
        _, answer, error = messages.decode_reply(payload)
        if error is not None:
            raise error
        return answer

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to monitor.sock."""
        reader, writer = await asyncio.open_connection(sock=sockets.connect(self.store.path, "monitor.sock"))
        self.writers.append(writer)
        return reader, writer

    async def announce(self, key: str, **params: Any) -> asyncio.StreamReader:
        """Announce a proxy; returns its stream of events."""
        reader, _ = await self.start_proxy(key, **params)
        return reader

    async def start_proxy(self, key: str, **params: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Announce a proxy; returns both directions of its connection."""
        reader, writer = await self.connect()
        writer.write(messages.encode_call(1, "proxy", {"key": key, "descriptors": []} | params))
        return reader, writer

    def joining(self, name: str = "c2", **changes: Any) -> ContainerPlan:
        """The plan of a container with a group; its state directory is created."""
        store = Store(self.store.root, name)
        if not os.path.exists(store.path):
            store.make(sandbox=self.store)
        steps = plug_steps([EDU], place(shape(EDU), self.spares), owner=name)
        planned = ContainerPlan(
            id=name, bundle="/b", rootfs="/b/rootfs", oci_version="1.0.2", annotations={}, owner="", shares=[],
            spec={"process": {"args": ["x"]}}, plugs=steps, nodes=[group_node(EDU.number)], hugepages=[],
            binds=[], network="", sysctls={},
        )  # fmt: skip
        if "plugs" in changes:
            planned.nodes[:] = [group_node(plug.group) for plug in changes["plugs"]]
        return msgspec.structs.replace(planned, **changes)

    async def join(self, **changes: Any) -> asyncio.StreamReader:
        """Create a second container, c2; returns the events of its proxy."""
        planned = self.joining(**changes)
        proxy = await self.announce(f"c2/{KEY}")
        await self.create(planned)
        return proxy

    @property
    def spares(self) -> list[Port]:
        """The free ports."""
        return self.sandbox.claims.spares

    async def create(self, planned: ContainerPlan) -> object:
        """Request the creation of a container from the monitor."""
        return await self.call(planned.id, "create", plan=msgspec.to_builtins(planned), sources=[], key=KEY)

    def state(self, name: str = "c2") -> dict[str, Any]:
        """The state of a container on disk."""
        with open(f"{self.store.root}/{name}/state.json", "rb") as file:
            state: dict[str, Any] = msgspec.json.decode(file.read())
        return state

    def prove_alone(self) -> None:
        """Check that nothing exists of any container other than the first."""
        assert self.qmp.plugged == set()
        assert len(self.spares) == 4
        assert self.guest.containers == {"c1"}
        with pytest.raises(NotFoundError):
            self.sandbox.find("c2")


@asynccontextmanager
async def pod(
    tmp_path: Path,
    qmp: FakeQmp | None = None,
    *,
    created: bool = True,
    seconds: float = 1.0,
    loopback: int = -1,
    **changes: Any,
) -> AsyncIterator[Pod]:
    """A sandbox whose VM runs. ``changes``: fields of its plan. ``created``: its first container, c1, is created.

    ``seconds``: the time limit of a device. ``loopback``: the namespace whose ports are forwarded.
    """
    store = Store(str(tmp_path / "root"), "c1")
    store.make()
    lock = store.lock()
    ours, theirs = [await asyncio.open_connection(sock=end) for end in socket.socketpair()]
    link, guest = GuestLink(*ours), FakeGuest(*theirs)
    tasks = [asyncio.create_task(link.run()), asyncio.create_task(guest.serve())]
    defaults: dict[str, Any] = {"spec": {"process": {"args": ["x"]}}, "bundle": str(tmp_path)}
    first = changed(plan(seconds=seconds), **defaults | changes)
    sandbox = ObservedSandbox(
        first, NoShare(), Apart(store.path, loopback), store, Steps(f"{store.path}/steps.json", [])
    )
    server = await asyncio.start_server(Service(sandbox).connection, sock=sockets.bind(store.path, "monitor.sock"))
    pod = Pod(sandbox, guest, FakeMachine(link, qmp or FakeQmp()), store, [ours[1], theirs[1]])
    try:
        if created:
            await pod.create_first()
        yield pod
    finally:
        for held in guest.held.values():
            held.set()
        sandbox.end()
        server.close()
        for writer in pod.writers:
            writer.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await settle()  # a transport ends shortly after it is closed
        os.close(lock)


async def settle() -> None:
    """Run the event loop until it would wait for a timer or another thread."""
    for _ in range(100):
        await asyncio.sleep(0)


async def events(proxy: asyncio.StreamReader) -> list[tuple[str, dict[str, Any]]]:
    """All events that a proxy received until its connection ended."""
    frames = Decoder().feed(await proxy.read())
    return [messages.decode_event(payload) for _, kind, payload in frames if kind == EVENT]


async def heard(proxy: asyncio.StreamReader) -> tuple[str, dict[str, Any]]:
    """The last event that a proxy received before its connection ended."""
    return (await events(proxy))[-1]


def run(story: Callable[[], Awaitable[None]]) -> None:
    """Run a test's coroutine in virtual time."""

    async def whole() -> None:
        await story()

    virtual_time.run(whole())
