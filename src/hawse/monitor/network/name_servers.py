"""Name servers on the loopback of the sandbox's network namespace, for example Docker's at 127.0.0.11.

Docker's server is the only one that knows the names of other containers (moby libnetwork/resolver.go), and the
container's resolv.conf names it. The loopback in the guest is another one: the agent listens there, and the
monitor connects each announced query to the server. See :mod:`hawse.agent.streams.name_servers`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import stat
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from hawse.errors import HostError
from hawse.monitor.agent.calls import ServeNames
from hawse.monitor.agent.events import Query

if TYPE_CHECKING:
    from hawse.monitor.agent.guest_link import GuestLink
    from hawse.monitor.network.host_network import Network
    from hawse.plan.model import ContainerPlan

#: The agent's limit of concurrent queries and connections (hawse.agent.streams.announced).
MOST = 64
#: A connection over TCP that is idle ends, so that a program that leaks connections does not block others.
IDLE_SECONDS = 15.0
_FILE = "/etc/resolv.conf"
_PORT = 53
_MAX_FILE = 64 * 1024
#: resolv.conf(5), MAXNS is 3.
_MAX_SERVERS = 3
#: A header of 12 bytes begins a message, and over TCP two bytes of length precede it (RFC 1035, 4.1.1, 4.2.2).
_MIN_MESSAGE, _MAX_MESSAGE = 12, 65535
_SECONDS, _CALL_SECONDS = 10.0, 30.0


class NameServers:
    """The servers that the first container's resolv.conf names, in the monitor's event loop."""

    def __init__(self, plan: ContainerPlan, network: Network, places: Mapping[str, str]) -> None:
        """``places`` are the paths of the container's shared mounts on the host, by the names of its shares."""
        self._network = network
        self._path = _path(plan, places)
        self._servers: list[str] = []
        self._queries: set[asyncio.Task[None]] = set()

    async def serve(self, link: GuestLink) -> None:
        """Ask the agent to listen at the addresses of the servers that the container's resolv.conf names now."""
        servers = [server for server in loopback_servers(_read(self._path)) if server not in self._servers]
        if servers:
            self._servers += servers
            await link.call(ServeNames(servers=servers), seconds=_CALL_SECONDS)

    async def connect(self, query: Query) -> socket.socket:
        """Connect to a server. Over UDP the socket carries one query and its answer as over TCP.

        Raises LookupError for a server that was not announced, and OSError or :class:`HostError` as
        :meth:`Network.make_socket`.
        """
        if query.server not in self._servers:
            raise LookupError(query.server)
        if query.transport == "tcp":
            async with asyncio.timeout(_SECONDS):
                return await self._connected(socket.SOCK_STREAM, query.server)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        task = asyncio.create_task(self._exchange(query.server, ours))
        self._queries.add(task)
        task.add_done_callback(self._queries.discard)
        return theirs

    def end(self) -> None:
        """End all unanswered queries."""
        for task in self._queries:
            task.cancel()

    async def _exchange(self, server: str, guest: socket.socket) -> None:
        """Send one query over UDP and pass its answer on. Without an answer, the connection ends, as with a dead
        server."""
        loop = asyncio.get_running_loop()
        with guest, suppress(OSError, HostError, RuntimeError):  # RuntimeError: no thread can be started
            async with asyncio.timeout(_SECONDS):
                message = await _read_message(guest)
                if len(message) < _MIN_MESSAGE:
                    return
                with await self._connected(socket.SOCK_DGRAM, server) as connection:
                    await loop.sock_sendall(connection, message)
                    answer = await loop.sock_recv(connection, _MAX_MESSAGE)
                await loop.sock_sendall(guest, len(answer).to_bytes(2, "big") + answer)

    async def _connected(self, kind: int, server: str) -> socket.socket:
        connection = await asyncio.to_thread(self._network.make_socket, kind)
        try:
            await asyncio.get_running_loop().sock_connect(connection, (server, _PORT))
        except BaseException:
            connection.close()
            raise
        return connection


async def _read_message(connection: socket.socket) -> bytes:
    """Read a message after its two bytes of length. Returns b"" if the connection ends within it."""
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2], "big"):
        piece = await loop.sock_recv(connection, 2 + _MAX_MESSAGE)
        if not piece:
            return b""
        data += piece
    return data[2 : 2 + int.from_bytes(data[:2], "big")]


def loopback_servers(text: str) -> list[str]:
    """The name servers of a resolv.conf that are on an IPv4 loopback, each once. Pure."""
    servers: list[str] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                address = ipaddress.IPv4Address(words[1])
            except ValueError:
                continue
            if address.is_loopback and str(address) not in servers:
                servers.append(str(address))
    return servers[:_MAX_SERVERS]


def _path(plan: ContainerPlan, places: Mapping[str, str]) -> str:
    """The path of the container's resolv.conf on the host; "" if the engine mounts none."""
    sources = {mount.get("source"): mount["destination"] for mount in plan.spec.get("mounts") or ()}
    for source, destination in sources.items():
        if os.path.normpath(destination) == _FILE and source:
            name = os.path.basename(source)
            if any(share.name == name for share in plan.shares):
                return places[name]
    return ""


def _read(path: str) -> str:
    """Read at most 64 KiB of a regular file; "" for any other file.

    The container may have replaced the file by a link to a device of the host. Such a device is not opened, since that
    may have side effects.
    """
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        if not stat.S_ISREG(os.fstat(place).st_mode):
            return ""
        with open(f"/proc/self/fd/{place}", "rb") as file:
            return file.read(_MAX_FILE).decode(errors="replace")
    except OSError:
        return ""
    finally:
        os.close(place)
