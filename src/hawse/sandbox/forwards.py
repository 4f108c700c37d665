"""Connections to the loopback of a pod's namespace on the host, passed on to the loopback that its containers have.

`kubectl port-forward` comes so: containerd and CRI-O dial "localhost" in the namespace (containerd
internal/cri/server/sandbox_portforward_linux.go; cri-o internal/oci/runtime_oci_linux.go). The agent makes a connection
of its own for each; between the two there is a stream of the link, as for a preserved descriptor.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Coroutine
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from hawse.errors import HawseError
from hawse.link.flow import SendWindow, decode_credit, encode_credit
from hawse.link.frames import CREDIT, DATA, EOF, MAX_DATA
from hawse.link.streams import BOTH, STDIO
from hawse.sandbox.sk_lookup import Loopback

if TYPE_CHECKING:
    from hawse.sandbox.guest import Route
    from hawse.sandbox.network import Network
    from hawse.sandbox.processes import Processes

#: The stream of a connection: that of the first descriptor behind stdio.
STREAM = len(STDIO)
#: As a listening socket's backlog: who comes beyond waits until another has gone.
_MAX_CONNECTIONS = 64
_PAUSE_SECONDS = 1.0
_RESET = struct.pack("ii", 1, 0)  # socket(7), SO_LINGER: close() tells the peer of an error


class Connection:
    """One connection of the host's; a :class:`hawse.sandbox.guest.Sink` for what the guest answers."""

    directions: tuple[str, ...] = (*STDIO, BOTH)

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._window = SendWindow()
        self._granted = asyncio.Event()
        self._answer = bytearray()  # bounded by the guest's credit
        self._answered = False
        self._changed = asyncio.Event()
        self.ended = asyncio.Event()

    def send(self, stream: int, kind: int, payload: bytes) -> None:
        """Take a frame of the guest. What is of another stream is dropped, and no credit is given back for it."""
        if stream != STREAM:
            return
        if kind == CREDIT:
            self._window.grant(decode_credit(payload))
            self._granted.set()
            return
        self._answer += payload
        self._answered = kind == EOF
        self._changed.set()

    def exit(self) -> None:
        """Both directions have ended in the guest."""
        self._answered = True
        self._changed.set()
        self.ended.set()

    async def serve(self, route: Route) -> None:
        """Pass on what comes from either side until both have ended: what the guest has sent to its last byte, and
        nothing more to a guest that has ended the connection. Raises OSError when the host's side is gone."""
        sending, ended = asyncio.create_task(self._to_guest(route)), asyncio.create_task(self.ended.wait())
        receiving = asyncio.create_task(self._from_guest(route))

        async def send() -> None:
            await asyncio.wait((sending, ended), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                await sending

        try:
            await asyncio.gather(send(), receiving)
        finally:
            for task in (sending, ended, receiving):
                task.cancel()

    def reset(self) -> None:
        """Have the host's side see an error."""
        connection: socket.socket = self._writer.get_extra_info("socket")
        with suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._writer.transport.abort()

    async def close(self) -> None:
        """Let it go; what is still to be written is written."""
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()

    async def _to_guest(self, route: Route) -> None:
        while data := await self._reader.read(min(self._window.available, MAX_DATA)):
            self._window.spend(len(data))
            route.from_proxy(STREAM, DATA, data)
            while not self._window.available:
                self._granted.clear()
                await self._granted.wait()
        route.from_proxy(STREAM, EOF, b"")

    async def _from_guest(self, route: Route) -> None:
        while self._answer or not self._answered:
            await self._changed.wait()
            self._changed.clear()
            data, self._answer = self._answer, bytearray()
            if data:
                self._writer.write(data)
                await self._writer.drain()
                route.from_proxy(STREAM, CREDIT, encode_credit(len(data)))
        self._writer.write_eof()


class Forwards:
    """All of a sandbox, in the monitor's one event loop."""

    def __init__(self, network: Network, processes: Processes) -> None:
        self._network = network
        self._processes = processes
        self._loopback: Loopback | None = None
        self._room = asyncio.Semaphore(_MAX_CONNECTIONS)
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self) -> list[tuple[str, str]]:
        """Take the ports of the namespace's loopback; what to log."""
        if self._network.namespace < 0:
            return []
        try:
            self._loopback = Loopback(self._network.namespace)
        except (OSError, HawseError) as error:
            words = error.message if isinstance(error, HawseError) else error.strerror
            return [
                (
                    "warning",
                    f"ports of this pod cannot be forwarded: its loopback on the host cannot be taken: {words} "
                    "(Linux 5.9 with CONFIG_BPF_SYSCALL and CONFIG_NET_SOCK_MSG can)",
                )
            ]
        for listening in self._loopback.sockets:
            self._begin(self._accept(listening))
        return []

    def end(self) -> None:
        """Give the ports back; connections that are there end."""
        for task in self._tasks:
            task.cancel()
        if self._loopback is not None:
            self._loopback.close()
            self._loopback = None

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(listening)
            except OSError:  # no descriptors or memory are left (accept(2)): who dials waits until there are
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            try:
                await self._room.acquire()
            except BaseException:
                accepted.close()
                raise
            self._begin(self._serve(accepted))

    async def _serve(self, accepted: socket.socket) -> None:
        with ExitStack() as undo:
            undo.callback(self._room.release)
            undo.enter_context(suppress(HawseError, OSError))  # nobody to tell but who dials
            failed = undo.enter_context(ExitStack())
            failed.callback(accepted.close)
            port = accepted.getsockname()[1]
            connection = Connection(*await asyncio.open_connection(sock=accepted))
            failed.pop_all()
            failed.callback(connection.reset)
            await self._processes.connect(connection, port)
            await connection.close()
            failed.pop_all()

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
