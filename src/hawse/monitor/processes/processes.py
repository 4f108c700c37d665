"""The processes of a sandbox's containers: each has a number, a proxy on the host, and streams between the two."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from hawse.errors import HawseError, HostError, StateError, VmError
from hawse.link.streams import BOTH, STDIO
from hawse.linux.processes import Process
from hawse.monitor.agent.calls import Accept, Answer, Call, Connect, Disconnect, Resize, Signal
from hawse.monitor.agent.guest_link import GuestLink, Route
from hawse.monitor.processes.connection import Connection
from hawse.monitor.processes.proxy_connections import Proxy

_PROXY_SECONDS = 20.0
#: A process's last output is 256 KiB a stream at most. A proxy reads it at once, unless it is stopped.
_FLUSH_SECONDS = 5.0
#: Exit codes of a process that the kernel has killed, and of one whose end nobody has seen.
KILLED, LOST = 128 + signal.SIGKILL, 255
Value = TypeVar("Value")


async def whole(work: Awaitable[Value]) -> Value:
    """The result of work that goes on when nobody waits for it any more, in a thread or in the guest.

    A cancellation is passed on when the work has ended: only then can what it did be undone. Later cancellations change
    nothing: the caller may have gone, and then its container is deleted, too.
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
    """All of them, in the monitor's one event loop. ``seconds``: what a call of the agent may take."""

    def __init__(self, *, seconds: float) -> None:
        self._seconds = seconds
        self._link: GuestLink | None = None
        self._proxies: dict[str, asyncio.Future[Proxy]] = {}
        self._claimed: set[str] = set()
        self._unwanted: set[str] = set()
        self._running: dict[int, _Running] = {}
        self._connections: dict[int, Connection] = {}
        self._newest = 0
        self._held: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing: set[asyncio.Task[None]] = set()
        #: What to do with a proxy that has been told its exit code.
        self.see_off: Callable[[Process], Awaitable[None]] | None = None

    def begin(self, link: GuestLink) -> None:
        """The agent answers."""
        self._link = link
        link.on_exit = self._exited

    async def call(self, call: Call[Answer], *, more: float = 0.0, within: float | None = None) -> Answer:
        """Ask the agent. ``more``: seconds that it may take beside what every call may; ``within``: in their place."""
        if self._link is None:
            raise StateError(f"container {getattr(call, 'container', '')} is still being created")
        seconds = self._seconds + more if within is None else within
        return await self._link.call(call, seconds=seconds)

    def hold(self, container: str, work: Coroutine[Any, Any, None]) -> None:
        """Do something that is to be done before an end of one of the container's processes is told."""
        self._held[container] = self._begin(work)

    def proxies(self, container: str) -> list[int]:
        """The pids on the host of the container's processes, in the order in which they were made."""
        return [running.proxy.pid for running in self._running.values() if running.container == container]

    def claim(self, key: str) -> None:
        """The process of this key will be made, however long that takes."""
        self._claimed.add(key)

    def announce(self, key: str, proxy: Proxy) -> None:
        """A proxy has connected and waits for its process, which was or will be asked for with the same key."""
        if key in self._unwanted:
            self._unwanted.discard(key)
            proxy.exit(LOST)
            return
        expected = self._expect(key)
        if expected.done():
            raise StateError(f"a second proxy for the process {key[:300]}")
        expected.set_result(proxy)
        asyncio.get_running_loop().call_later(_PROXY_SECONDS, self._turn_away, key)

    def fail(self, key: str, reason: str) -> None:
        """A proxy could not get to where programs of the host look for its container."""
        expected = self._expect(key)
        if not expected.done():
            expected.set_exception(
                HostError(
                    f"the container's files cannot be put together for programs of the host: {reason}",
                    hint="hawse needs root, with CAP_SYS_ADMIN, and Linux 5.2",
                )
            )

    async def await_proxy(self, key: str) -> Proxy:
        """The proxy that announces itself with this key. Raises :class:`VmError` when none does, and HostError."""
        self.claim(key)
        try:
            async with asyncio.timeout(_PROXY_SECONDS):
                return await asyncio.shield(self._expect(key))
        except TimeoutError:
            raise VmError(f"the proxy process did not connect within {_PROXY_SECONDS:g} s") from None
        except asyncio.CancelledError:
            self._claimed.discard(key)
            if not self._turn_away(key):
                self._unwanted.add(key)
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
        """Have the agent create a process for the proxy: its number, and the agent's answer.

        ``make`` returns the call for a number and the directions of the descriptors from 3 on. ``ended`` is called at
        the process's end, and ``lost`` when its proxy has been killed.

        Cancelled, it waits for the answer; a process that was made then is for the container's end to end.
        """
        assert self._link is not None
        # Numbered where nothing is awaited before it is sent: the agent takes them in ascending order only.
        self._newest += 1
        number = self._newest
        route = self._link.route(number, proxy)
        self._running[number] = _Running(container, proxy, ended)
        # In this order, which is that of their frames: the agent knows no stream before the process that it is of.
        asked = asyncio.create_task(self.call(make(number, list(proxy.directions[len(STDIO) :]))))
        serving = self._begin(self._serve(container, number, proxy, route, lost))
        try:
            result = await whole(asked)
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
        """How many connections of the host's the guest has."""
        return len(self._connections)

    async def connect(self, connection: Connection, port: int) -> None:
        """Have the agent connect to a port of the guest's loopback, and pass on until both directions have ended.

        Raises HawseError when nobody listens there, and OSError when the host's side is gone before its time.
        """
        await self._pass_on(connection, lambda number: Connect(process=number, port=port, descriptors=[BOTH]))

    async def accept(self, connection: Connection, announced: int) -> None:
        """Pass on between a socket of the host and a connection that the agent has announced by a number.

        Raises as :meth:`connect`.
        """
        await self._pass_on(connection, lambda number: Accept(process=number, connection=announced, descriptors=[BOTH]))

    async def _pass_on(self, connection: Connection, make: Callable[[int], Call[None]]) -> None:
        assert self._link is not None
        self._newest += 1
        number = self._newest
        route = self._link.route(number, connection)
        self._connections[number] = connection
        asked = asyncio.create_task(self.call(make(number)))
        try:
            await whole(asked)
            await connection.serve(route)
            await connection.ended.wait()
        except BaseException:
            refused = asked.done() and (asked.cancelled() or asked.exception() is not None)
            if refused:
                self._connections.pop(number, None)
                self._link.forget(number)
            elif number in self._connections:
                route.discard()  # what its other end still writes would keep it
                self._begin(self._disconnect(number))
            raise

    async def signal(self, container: str, number: int, signal_number: int, *, everyone: bool) -> None:
        """Signal a process, or every one of the container."""
        await self.call(Signal(container=container, process=number, signal=signal_number, everyone=everyone))

    def end(self, code: int, *, container: str | None = None) -> None:
        """Processes, of one container or of all, are gone without a word of the guest's."""
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
                if not self._turn_away(key):
                    self._unwanted.add(key)

    async def flush(self) -> None:
        """Wait until proxies have read the last output and the exit codes; bounded, since one may be stopped."""
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
        if self.see_off is not None:
            await self.see_off(process)

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
            # Whoever kills the proxy means the process: engines know no other pid.
            on_loss=kill,
        )

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do something beside; what fails of it, a signal to a process that has ended, say, has nobody to tell."""
        task = asyncio.create_task(work)
        self._tasks.add(task)

        def ended(done: asyncio.Task[None]) -> None:
            self._tasks.discard(done)
            if not done.cancelled():
                done.exception()

        task.add_done_callback(ended)
        return task

    def _turn_away(self, key: str) -> bool:
        """End a proxy that waits for a process that will not be: the command that started it was killed."""
        expected = self._proxies.get(key)
        if expected is None or not expected.done() or key in self._claimed:
            return False
        del self._proxies[key]
        if not expected.cancelled() and expected.exception() is None:
            expected.result().exit(LOST)
        return True

    async def _disconnect(self, number: int) -> None:
        await self.call(Disconnect(process=number))

    def _exited(self, number: int, code: int) -> None:
        connection = self._connections.pop(number, None)
        if connection is not None:
            self._forget(number)
            connection.exit()
        running = self._running.pop(number, None)
        if running is None:
            return
        self._forget(number)
        held = self._held.get(running.container)
        if held is None or held.done():
            self._tell(running, code)
        else:
            held.add_done_callback(lambda _: self._tell(running, code))

    def _forget(self, number: int) -> None:
        if self._link is not None:
            self._link.forget(number)

    def _tell(self, running: _Running, code: int) -> None:
        running.ended()
        self._exit(running.proxy, code)

    async def _resize(self, container: str, number: int, rows: int, columns: int) -> None:
        with suppress(HawseError):  # the process may have ended, or not exist yet
            await self.call(Resize(container=container, process=number, rows=rows, columns=columns))

    def _expect(self, key: str) -> asyncio.Future[Proxy]:
        return self._proxies.setdefault(key, asyncio.get_running_loop().create_future())
