"""A target for the monitor's objects together: a container, an exec and a forwarded connection.

The guest sends the input while they are created, run and end.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

from hawse.errors import HawseError, StateError, VmError
from hawse.host.cgroup.sandbox_cgroup import HostCgroup
from hawse.link import messages
from hawse.link.flow import WINDOW
from hawse.link.frames import DATA, EOF, EVENT, HEADER, Decoder, encode
from hawse.link.streams import STREAMS
from hawse.linux.processes import Process
from hawse.monitor.agent.guest_link import GuestLink
from hawse.monitor.agent.notifications import MAX_TEXT
from hawse.monitor.container import Container
from hawse.monitor.devices.claims import Claims
from hawse.monitor.network.announced import Announced
from hawse.monitor.network.host_sockets import HostSockets
from hawse.monitor.processes.connection import Connection
from hawse.monitor.processes.process_table import LOST, Processes
from hawse.monitor.processes.proxy_connections import Proxy
from hawse.oci.limits.cgroups import CgroupPlan
from hawse.oci.process.inherited import Inherited
from hawse.plan.model import ContainerPlan
from hawse.state.store import STOPPED, Store
from tests.fuzz.mutations import split
from tests.fuzz.streams import HELLO, LINK_SEEDS, Reader, Writer, event, reason_of
from tests.fuzz.target import FRAMES, Run, Target, check_plain, in_loop

#: Turns of the event loop between two frames.
_TURNS = 4
_MEMORY = "/dev/shm"
_PLAN = ContainerPlan(
    id="c1", bundle="/b", rootfs="/b/rootfs", oci_version="1.0.2", annotations={}, owner="", shares=[],
    spec={"process": {"args": ["x"]}}, plugs=[], nodes=[], hugepages=[], binds=[], network="", sysctls={},
)  # fmt: skip
_OPERATIONS: tuple[Callable[[Container], Awaitable[object]], ...] = (
    lambda container: container.usage.answer("listing", {}),
    lambda container: container.pause(),
    lambda container: container.resume(),
    lambda container: container.usage.answer("statistics", {}),
    lambda container: container.kill(15, everyone=False),
    lambda container: container.execute("k", {"args": ["y"]}, Inherited()),
)


class _Frames(Reader):
    """The guest's frames one by one, with time between them for what they cause."""

    def __init__(self, data: bytes) -> None:
        self._pieces = [HEADER.pack(stream, kind, len(payload)) + payload for stream, kind, payload in split(data)]
        self._pieces += [data[sum(map(len, self._pieces)) :]]

    async def read(self, _most: int) -> bytes:
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        return await super().read(_most)


class _Events(Writer):
    """The connection to a proxy; ``exits`` are the codes that the monitor reported to it."""

    def __init__(self) -> None:
        super().__init__()
        self.exits: list[int] = []
        self._decoder = Decoder()

    def write(self, data: bytes) -> None:
        super().write(data)
        for _, kind, payload in self._decoder.feed(data):
            if kind == EVENT:
                name, params = messages.decode_event(payload)
                if name == "notify":
                    check_plain(params["notice"], most=6 * MAX_TEXT)
                else:
                    self.exits.append(params["code"])


class _Monitor:
    """The monitor's objects, of one case."""

    def __init__(self, directory: str, data: bytes) -> None:
        self.link = GuestLink(cast(Any, _Frames(data)), cast(Any, Writer()))
        self.processes = Processes(seconds=60)
        self.processes.begin(self.link)
        self.store = Store(directory, "c1")
        self.container = Container(
            _PLAN, self.store, self.processes, Claims([]), HostCgroup(CgroupPlan(), self.store.path), key="init",
            seconds=1, sandbox="c1",
        )  # fmt: skip
        self.link.on_oom = lambda _name, kills: self.container.usage.note_oom(kills)
        self.link.on_notify = lambda _name, text: self.container.notices.handle(text)
        self.dials = Announced(self.processes, HostSockets(_no_socket).connect, what="sockets of the host", most=64)
        self.link.on_dial = self.dials.handle
        self._ends: list[asyncio.StreamReader] = []
        self._writers: list[_Events] = []

    async def live(self) -> None:
        """From the creation to the end of the link, and after it."""
        using = asyncio.create_task(self._use())
        await self.link.run()
        reason = reason_of(self.link)
        self.container.record_failure(reason)
        self.container.end()
        self.processes.end(LOST)
        self.dials.end()
        async with asyncio.timeout(5):  # an OOM kill is recorded in a thread, and the exit is reported after that
            while not all(writer.closed for writer in self._writers):
                await asyncio.sleep(0)
        for end in self._ends:
            end.feed_eof()
        _, pending = await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()} | {using}, timeout=5)
        assert not pending, f"they wait for ever: {pending}"
        with suppress(HawseError):
            using.result()
        self._check()

    def _check(self) -> None:
        with open(f"{self.store.path}/state.json") as file:
            state = json.load(file)
        assert state["status"] == STOPPED
        check_plain(state)
        assert self.processes.proxies("c1") == []
        assert self.processes.connections == 0
        for writer in self._writers:
            assert len(writer.exits) == 1, "each proxy hears of one exit"
            assert 0 <= writer.exits[0] <= 255
            assert writer.size <= 4 * WINDOW

    async def _use(self) -> None:
        """Use the container as an engine does. After its start, errors are ignored."""
        self._announce("init")
        await self.container.create({})
        await self.container.start()
        connecting = asyncio.create_task(self._connect())
        if not self.link.ended.done():
            self._announce("k")
        for operation in _OPERATIONS:
            with suppress(HawseError):
                check_plain(await operation(self.container))
        with suppress(HawseError):
            await connecting

    def _announce(self, key: str) -> None:
        writer = _Events()
        self._writers.append(writer)
        proxy = Proxy(self._reader(), cast(Any, writer), Decoder(), [], process=Process(os.getpid(), -1))
        self.processes.announce(f"c1/{key}", proxy)

    async def _connect(self) -> None:
        reader = self._reader()
        reader.feed_data(b"GET / HTTP/1.0\r\n\r\n")
        await self.processes.connect(Connection(reader, cast(Any, Writer())), 80)

    def _reader(self) -> asyncio.StreamReader:
        self._ends.append(asyncio.StreamReader())
        return self._ends[-1]


def _no_socket(container: str, name: str) -> int:
    raise KeyError(f"{container}: {name}")


@contextmanager
def _sandbox() -> Iterator[Run]:
    with tempfile.TemporaryDirectory(dir=_MEMORY if os.path.isdir(_MEMORY) else None) as directory:
        os.mkdir(f"{directory}/c1")

        async def case(data: bytes) -> None:
            await _Monitor(directory, data).live()

        with in_loop(case) as run:
            yield run


_CALLS = range(1, 9)  # create, start, then in any order: connect, listing, freeze, ...
_PROCESSES = ((1, 1), (2, 3), (3, 1))  # the first, the connection's stream, the exec
SEEDS = [
    HELLO + b"".join(messages.encode_result(number, None) for number in _CALLS) + event("exit", process=1, code=3),
    HELLO
    + b"".join(messages.encode_result(number, None if number < 3 else []) for number in _CALLS)
    + b"".join(
        encode(process * STREAMS + number, DATA, b"x" * 50) + encode(process * STREAMS + number, EOF)
        + event("exit", process=process, code=process) for process, number in reversed(_PROCESSES)
    ),
    messages.encode_result(1, None) + messages.encode_error(2, StateError("no"))
    + event("oom", container="c1", kills=1) + event("oom", container="c1", kills=9),
    messages.encode_error(1, VmError("no")) + event("exit", process=1, code=0),
    *LINK_SEEDS,
]  # fmt: skip
TARGETS = [Target("sandbox", FRAMES, SEEDS, _sandbox)]
