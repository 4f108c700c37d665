"""The processes of a sandbox's containers. Streams connect each process in the guest to its proxy on the host."""

from __future__ import annotations

import asyncio
import signal
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from hawse.errors import HawseError, HostError, NotFoundError, StateError, VmError
from hawse.link.frames import MAX_STREAM
from hawse.link.streams import BOTH, STDIO, STREAMS
from hawse.linux.processes import Process
from hawse.monitor.agent.calls import Accept, Answer, Call, Connect, Disconnect, Resize, Signal
from hawse.monitor.agent.guest_link import GuestLink, Route
from hawse.monitor.processes.connection import Connection
from hawse.monitor.processes.proxy_connections import Proxy

_PROXY_SECONDS = 20.0
#: The last output of a process is 256 KiB per stream at most. A proxy reads it at once, unless it is stopped.
_FLUSH_SECONDS = 5.0
#: Exit codes of a process that the kernel killed, and of a process whose exit code is unknown.
KILLED, LOST = 128 + signal.SIGKILL, 255
Value = TypeVar("Value")


async def uninterrupted(work: Awaitable[Value]) -> Value:
    """The result of work that cannot be cancelled: it continues in a thread or in the guest.

    A cancellation is raised when the work has ended, since its effects cannot be undone before. Further cancellations
    are ignored: the caller may have disconnected, and then its container is deleted as well.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait((task,))
        raise


@dataclass(frozen=True)
class _Running:
    container: str
    proxy: Proxy
    ended: Callable[[], None]


class Processes:
    """The processes of all containers, in the monitor's event loop. ``seconds``: the timeout of a call to the agent."""

    def __init__(self, *, seconds: float) -> None:
        self._seconds = seconds
        self._link: GuestLink | None = None
        self._proxies: dict[str, asyncio.Future[Proxy]] = {}
        self._claimed: set[str] = set()
        self._rejected: set[str] = set()
        self._running: dict[int, _Running] = {}
        self._connections: dict[int, Connection] = {}
        self._newest = 0
        #: Numbers of connections that have ended. A process does not reuse a number: the agent may still give credit
        #: for its stdin after its exit.
        self._free: deque[int] = deque()
        self._disconnecting: set[int] = set()
        self._held: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing: set[asyncio.Task[None]] = set()
        #: Called with a proxy's process after the exit code was sent to it.
        self.await_proxy_exit: Callable[[Process], Awaitable[None]] | None = None

    def begin(self, link: GuestLink) -> None:
        """Use this link, whose agent answers calls from now on."""
        self._link = link
        link.on_exit = self._exited

    async def call(self, call: Call[Answer], *, more: float = 0.0, within: float | None = None) -> Answer:
        """Call the agent. ``more``: seconds to add to the usual timeout; ``within``: seconds that replace it."""
        if self._link is None:
            raise StateError(f"container {getattr(call, 'container', '')} is still being created")
        seconds = self._seconds + more if within is None else within
        return await self._link.call(call, seconds=seconds)

    def hold(self, container: str, work: Coroutine[Any, Any, None]) -> None:
        """Start work that must complete before the exit of a process of the container is reported."""
        self._held[container] = self._begin(work)

    def proxies(self, container: str) -> list[int]:
        """The pids on the host of the container's processes, in the order of their creation."""
        return [running.proxy.pid for running in self._running.values() if running.container == container]

    def claim(self, key: str) -> None:
        """Expect a process with this key: its proxy waits for it without a time limit."""
        self._claimed.add(key)

    def announce(self, key: str, proxy: Proxy) -> None:
        """Register a proxy that has connected. It waits for its process, which is requested with the same key."""
        if key in self._rejected:
            self._rejected.discard(key)
            proxy.exit(LOST)
            return
        expected = self._expect(key)
        if expected.done():
            raise StateError(f"a second proxy for the process {key[:300]}")
        expected.set_result(proxy)
        asyncio.get_running_loop().call_later(_PROXY_SECONDS, self._reject_proxy, key)

    def fail(self, key: str, reason: str) -> None:
        """Report that a proxy could not enter the mount namespace in which programs of the host see its container."""
        expected = self._expect(key)
        if not expected.done():
            expected.set_exception(
                HostError(
                    f"cannot assemble the container's files for programs of the host: {reason}",
                    hint="hawse needs root, with CAP_SYS_ADMIN, and Linux 5.2",
                )
            )

    async def await_proxy(self, key: str) -> Proxy:
        """Wait for the proxy with this key. Raises :class:`VmError` if none connects, and HostError from
        :meth:`fail`."""
        self.claim(key)
        try:
            async with asyncio.timeout(_PROXY_SECONDS):
                return await asyncio.shield(self._expect(key))
        except TimeoutError:
            raise VmError(f"the proxy process did not connect within {_PROXY_SECONDS:g} s") from None
        except asyncio.CancelledError:
            self._claimed.discard(key)
            if not self._reject_proxy(key):
                self._rejected.add(key)
            raise
        finally:
            self._proxies.pop(key, None)
            self._claimed.discard(key)

    async def launch(
        self,
        container: str,
        proxy: Proxy,
        make: Callable[[int, list[str]], Call[Answer]],
        *,
        ended: Callable[[], None],
        lost: Callable[[], None] = lambda: None,
    ) -> tuple[int, Answer]:
        """Ask the agent to create a process for the proxy. Returns its number and the agent's answer.

        ``make`` returns the call for a number and the directions of the descriptors from 3 on. ``ended`` is called when
        the process has ended, and ``lost`` when its proxy was killed.

        A cancellation is raised after the answer. If the process was created, it runs until the container ends.
        """
        assert self._link is not None
        number = self._new_number()
        route = self._link.route(number, proxy)
        self._running[number] = _Running(container, proxy, ended)
        # The call's frame must precede those of the streams: the agent refuses streams of an unknown process.
        asked = asyncio.create_task(self.call(make(number, list(proxy.directions[len(STDIO) :]))))
        serving = self._begin(self._serve(container, number, proxy, route, lost))
        try:
            result = await uninterrupted(asked)
        finally:
            if not asked.done() or asked.cancelled() or asked.exception() is not None:
                serving.cancel()
                self._running.pop(number, None)
                self._link.forget(number)
        if proxy.size is not None:
            await self._resize(container, number, *proxy.size)
        return number, result

    @property
    def connections(self) -> int:
        """The number of connections between host and guest."""
        return len(self._connections)

    async def connect(self, connection: Connection, port: int) -> None:
        """Connect to a port of the guest's loopback, and forward data until both directions have ended.

        Raises HawseError if the connection is refused, and OSError if the host's side fails before the end.
        """
        await self._forward(connection, lambda number: Connect(process=number, port=port, descriptors=[BOTH]))

    async def accept(self, connection: Connection, announced: int) -> None:
        """Forward data between a socket of the host and the connection that the agent announced with this number.

        Raises as :meth:`connect`.
        """
        await self._forward(connection, lambda number: Accept(process=number, connection=announced, descriptors=[BOTH]))

    async def _forward(self, connection: Connection, make: Callable[[int], Call[None]]) -> None:
        assert self._link is not None
        number = self._free.popleft() if self._free else self._new_number()
        route = self._link.route(number, connection)
        self._connections[number] = connection
        asked = asyncio.create_task(self.call(make(number)))
        try:
            await uninterrupted(asked)
            await connection.serve(route)
            await connection.ended.wait()
        except BaseException:
            refused = asked.done() and (asked.cancelled() or asked.exception() is not None)
            if self._connections.get(number) is not connection:
                pass  # the guest has ended it, and the number may belong to another connection now
            elif refused:
                self._connections.pop(number, None)
                self._link.forget(number)
            else:
                route.discard()  # without credit, unread data would keep the guest's side open
                self._disconnecting.add(number)
                self._begin(self._disconnect(number))
            raise

    async def signal(self, container: str, number: int, signal_number: int, *, everyone: bool) -> None:
        """Send a signal to a process, or to all processes of the container."""
        await self.call(Signal(container=container, process=number, signal=signal_number, everyone=everyone))

    def end(self, code: int, *, container: str | None = None) -> None:
        """Report an exit code for the processes of one container or of all, whose end the guest has not reported."""
        for number, running in list(self._running.items()):
            if container in (None, running.container):
                del self._running[number]
                self._exit(running.proxy, code)
                self._forget(number)
        if container is None:
            for number, connection in list(self._connections.items()):
                self._exited(number, code)
                connection.reset()
        for key in {*self._proxies, *self._claimed}:
            if container in (None, key.partition("/")[0]):
                self._claimed.discard(key)
                if not self._reject_proxy(key):
                    self._rejected.add(key)

    async def flush(self) -> None:
        """Wait until the proxies have read the last output and the exit codes, for a limited time: one may be
        stopped."""
        if self._closing:
            await asyncio.wait(self._closing, timeout=_FLUSH_SECONDS)

    def _exit(self, proxy: Proxy, code: int) -> None:
        proxy.exit(code)
        closing = self._begin(self._close(proxy))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def _close(self, proxy: Proxy) -> None:
        process = proxy.process
        await proxy.closed()
        if self.await_proxy_exit is not None:
            await self.await_proxy_exit(process)

    async def _serve(self, container: str, number: int, proxy: Proxy, route: Route, lost: Callable[[], None]) -> None:
        def resize(rows: int, columns: int) -> None:
            proxy.size = (rows, columns)
            self._begin(self._resize(container, number, rows, columns))

        def kill() -> None:
            lost()
            self._begin(self.signal(container, number, signal.SIGKILL, everyone=False))

        await proxy.serve(
            route,
            on_signal=lambda n: self._begin(self.signal(container, number, n, everyone=False)),
            on_resize=resize,
            # A kill of the proxy is meant for the process: engines know only the proxy's pid.
            on_loss=kill,
        )

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run work as a task. Its errors are ignored, for example that of a signal to a process that has ended."""
        task = asyncio.create_task(work)
        self._tasks.add(task)

        def ended(done: asyncio.Task[None]) -> None:
            self._tasks.discard(done)
            if not done.cancelled():
                done.exception()

        task.add_done_callback(ended)
        return task

    def _reject_proxy(self, key: str) -> bool:
        """End a proxy whose process will not be created, because the command that requested it was killed."""
        expected = self._proxies.get(key)
        if expected is None or not expected.done() or key in self._claimed:
            return False
        del self._proxies[key]
        if not expected.cancelled() and expected.exception() is None:
            expected.result().exit(LOST)
        return True

    async def _disconnect(self, number: int) -> None:
        with suppress(NotFoundError):  # it has ended meanwhile
            await self.call(Disconnect(process=number))
        # Not after another error: the agent may still carry out the call, on the next connection with the number.
        self._disconnecting.discard(number)
        if number not in self._connections:
            self._free.append(number)

    def _new_number(self) -> int:
        if self._newest >= MAX_STREAM // STREAMS - 1:
            raise VmError(
                f"the sandbox has had {self._newest} processes, which is the maximum",
                hint="delete the sandbox's containers, and create them again",
            )
        self._newest += 1
        return self._newest

    def _exited(self, number: int, code: int) -> None:
        connection = self._connections.pop(number, None)
        if connection is not None:
            self._forget(number)
            connection.exit()
            if number not in self._disconnecting:
                self._free.append(number)
        running = self._running.pop(number, None)
        if running is None:
            return
        self._forget(number)
        held = self._held.get(running.container)
        if held is None or held.done():
            self._report_exit(running, code)
        else:
            held.add_done_callback(lambda _: self._report_exit(running, code))

    def _forget(self, number: int) -> None:
        if self._link is not None:
            self._link.forget(number)

    def _report_exit(self, running: _Running, code: int) -> None:
        running.ended()
        self._exit(running.proxy, code)

    async def _resize(self, container: str, number: int, rows: int, columns: int) -> None:
        with suppress(HawseError):  # the process may have ended, or not exist yet
            await self.call(Resize(container=container, process=number, rows=rows, columns=columns))

    def _expect(self, key: str) -> asyncio.Future[Proxy]:
        return self._proxies.setdefault(key, asyncio.get_running_loop().create_future())
