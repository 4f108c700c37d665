"""Name queries of the guest for servers on the loopback of its network namespace, asked there.

Docker's networks have theirs at 127.0.0.11 (moby libnetwork/resolver.go): names of other containers are known to it
alone. The container's resolv.conf names it; the guest's own loopback is another one. See
:mod:`hawse.agent.streams.resolver`.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import os
import socket
import stat
from collections.abc import Mapping
from typing import TYPE_CHECKING

from hawse.monitor.agent.calls import AnswerName, ServeNames
from hawse.monitor.agent.events import MAX_MESSAGE, Query

if TYPE_CHECKING:
    from hawse.monitor.agent.guest_link import GuestLink
    from hawse.monitor.network.host_network import Network
    from hawse.plan.model import ContainerPlan

_FILE = "/etc/resolv.conf"
_PORT = 53
_MAX_FILE = 64 * 1024
#: resolv.conf(5), MAXNS is 3.
_MAX_SERVERS = 3
#: A message begins with a header of 12 bytes (RFC 1035, section 4.1.1).
_MIN_MESSAGE = 12
_MAX_QUERIES = 64
_SECONDS, _CALL_SECONDS = 10.0, 30.0


class Resolver:
    """The host's half, in the monitor's event loop."""

    def __init__(self, plan: ContainerPlan, network: Network, places: Mapping[str, str]) -> None:
        """``places`` are where what the container shares is mounted, by the names of its shares."""
        self._network = network
        self._path = _path(plan, places)
        self._servers: list[str] = []
        self._queries: set[asyncio.Task[None]] = set()

    async def serve(self, link: GuestLink) -> None:
        """Have the guest pass queries on for the servers that the container's resolv.conf has now."""
        servers = [server for server in loopback_servers(_read(self._path)) if server not in self._servers]
        if servers:
            self._servers += servers
            link.on_query = lambda query: self._begin(link, query)
            await link.call(ServeNames(servers=servers), seconds=_CALL_SECONDS)

    def _begin(self, link: GuestLink, query: Query) -> None:
        message = query.decode()
        # Who asks for more at once, of who is not named, or what is no query, waits in vain, as with a server that is
        # gone. All of it a container can do by itself: the link, and with it the sandbox, goes on.
        if query.server in self._servers and len(self._queries) < _MAX_QUERIES and len(message) >= _MIN_MESSAGE:
            task = asyncio.create_task(self._ask(link, query, message))
            self._queries.add(task)
            task.add_done_callback(self._queries.discard)

    async def _ask(self, link: GuestLink, query: Query, message: bytes) -> None:
        try:
            async with asyncio.timeout(_SECONDS):
                answer = await self._exchange(query.server, query.transport, message)
            text = base64.b64encode(answer).decode()
            await link.call(AnswerName(number=query.number, message=text), seconds=_CALL_SECONDS)
        except Exception:
            return  # no answer, as from a server that is gone; the program in the container asks again

    async def _exchange(self, server: str, transport: str, message: bytes) -> bytes:
        loop = asyncio.get_running_loop()
        kind = socket.SOCK_STREAM if transport == "tcp" else socket.SOCK_DGRAM
        with await asyncio.to_thread(self._network.make_socket, kind) as connection:
            await loop.sock_connect(connection, (server, _PORT))
            if transport == "udp":
                await loop.sock_sendall(connection, message)
                return await loop.sock_recv(connection, MAX_MESSAGE)
            await loop.sock_sendall(connection, len(message).to_bytes(2, "big") + message)
            data = b""
            while len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2], "big"):
                piece = await loop.sock_recv(connection, MAX_MESSAGE)
                if not piece:
                    raise ConnectionError
                data += piece
            return data[2 : 2 + int.from_bytes(data[:2], "big")]


def loopback_servers(text: str) -> list[str]:
    """The name servers of a resolv.conf that are on an IPv4 loopback, each once. Pure."""
    found: list[str] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                address = ipaddress.IPv4Address(words[1])
            except ValueError:
                continue
            if address.is_loopback and str(address) not in found:
                found.append(str(address))
    return found[:_MAX_SERVERS]


def _path(plan: ContainerPlan, places: Mapping[str, str]) -> str:
    """Where the container's resolv.conf is on the host, "" where the engine mounts none."""
    sources = {mount.get("source"): mount["destination"] for mount in plan.spec.get("mounts") or ()}
    for source, destination in sources.items():
        if os.path.normpath(destination) == _FILE and source:
            name = os.path.basename(source)
            if any(share.name == name for share in plan.shares):
                return places[name]
    return ""


def _read(path: str) -> str:
    """At most 64 KiB of a regular file, "" for anything else. The container may have written it, and may have replaced
    it by a link to a device of the host: what is not a regular file is not opened, since that may have effects."""
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
