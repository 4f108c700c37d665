"""Forward connections from the loopback of a pod's namespace on the host to the guest's loopback.

`kubectl port-forward` needs this: containerd and CRI-O dial "localhost" in the namespace (containerd
internal/cri/server/sandbox_portforward_linux.go; cri-o internal/oci/runtime_oci_linux.go). The agent opens
a connection in the guest for each. A stream of the link joins the two, as for a preserved descriptor.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Coroutine
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from hawse.errors import HawseError
from hawse.link.streams import STDIO
from hawse.monitor.network.sk_lookup import Loopback
from hawse.monitor.processes.connection import Connection
from hawse.notes import Note, warning

if TYPE_CHECKING:
    from hawse.monitor.network.host_network import Network
    from hawse.monitor.processes.process_table import Processes

#: The stream of a connection is that of the first descriptor after stdio.
STREAM = len(STDIO)
#: Maximum concurrent connections; further clients wait in the listen backlog.
_MAX_CONNECTIONS = 64
_PAUSE_SECONDS = 1.0
_RESET = struct.pack("ii", 1, 0)  # socket(7), SO_LINGER: close() resets the connection


class Forwards:
    """All forwarded connections of a sandbox, in the monitor's event loop."""

    def __init__(self, network: Network, processes: Processes) -> None:
        self._network = network
        self._processes = processes
        self._loopback: Loopback | None = None
        self._slots = asyncio.Semaphore(_MAX_CONNECTIONS)
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self) -> list[Note]:
        """Listen on all ports of the namespace's loopback. Returns notes to log."""
        if self._network.namespace < 0:
            return []
        try:
            self._loopback = Loopback(self._network.namespace)
        except (OSError, HawseError) as error:
            reason = error.message if isinstance(error, HawseError) else error.strerror
            text = "ports of this pod cannot be forwarded: cannot listen on its loopback on the host"
            return [warning(f"{text}: {reason} [use Linux 5.9 with CONFIG_BPF_SYSCALL and CONFIG_NET_SOCK_MSG]")]
        for listening in self._loopback.sockets:
            self._begin(self._accept(listening))
        return []

    def end(self) -> None:
        """Stop listening, and end all connections."""
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
            except OSError:  # no descriptors or memory are left (accept(2)): clients wait in the backlog
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            try:
                await self._slots.acquire()
            except BaseException:
                accepted.close()
                raise
            self._begin(self._serve(accepted))

    async def _serve(self, accepted: socket.socket) -> None:
        with ExitStack() as undo:
            undo.callback(self._slots.release)
            undo.enter_context(suppress(HawseError, OSError))  # the reset reports the error to the client
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
