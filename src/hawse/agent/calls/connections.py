"""Calls for connections between the host and the guest, in both directions.

Most guests need no connection, so the modules are imported for the first one.
"""

from __future__ import annotations

import threading
from functools import partial

from hawse.agent.calls.guest import Guest

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from hawse.agent.streams.announced import Announced
    from hawse.agent.streams.forwards import Forwards
    from hawse.agent.streams.host_sockets import HostSockets
    from hawse.agent.streams.name_servers import NameServers


class ConnectionCalls:
    """Connections that the host requests, and connections of containers that the host accepts."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._lock = threading.Lock()
        self._forwards: Forwards | None = None
        self._announced: Announced | None = None
        self._host_sockets: HostSockets | None = None
        self._name_servers: NameServers | None = None

    def connect(self, *, process: int, port: int) -> None:
        """Connect to a port of the guest's loopback. The host has chosen the connection's number, ``process``."""
        try:
            self._forwarding().connect(
                process, self._guest.streams.of(process), port=port, ended=partial(self._end, process)
            )
        except BaseException:
            self._guest.streams.abandon(process)
            raise

    def disconnect(self, *, process: int) -> None:
        """Close a connection whose side on the host is closed."""
        if self._forwards is not None:
            self._forwards.disconnect(process)

    def accept(self, *, process: int, connection: int) -> None:
        """Forward an announced connection: the host has connected to the socket or server that it is for."""
        try:
            accepted, release = self._announcing().take(connection)
        except BaseException:
            self._guest.streams.abandon(process)
            raise

        def ended() -> None:
            release()
            self._end(process)

        try:
            self._forwarding().serve(process, self._guest.streams.of(process), accepted, ended=ended)
        except BaseException:  # descriptors or threads are exhausted
            accepted.close()
            release()
            self._guest.streams.abandon(process)
            raise

    def refuse(self, *, connection: int) -> None:
        """Close an announced connection, because the host cannot connect to its socket or server."""
        self._announcing().refuse(connection)

    def serve_names(self, *, servers: list[str]) -> None:
        """Listen for name queries to these servers."""
        from hawse.agent.streams.name_servers import NameServers

        announced = self._announcing()
        with self._lock:
            self._name_servers = self._name_servers or NameServers(announced)
        self._name_servers.serve(servers=servers)

    def listen(self, container: str, sockets: list[tuple[str, int, int, int]]) -> None:
        """Create a container's sockets for sockets of the host. ``sockets`` are name, mode, uid and gid of each."""
        from hawse.agent.streams.host_sockets import HostSockets

        announced = self._announcing()
        with self._lock:
            self._host_sockets = self._host_sockets or HostSockets(announced)
        self._host_sockets.listen(container, sockets, self._directory(container))

    def close(self, container: str) -> None:
        """Remove the sockets of a container."""
        if self._host_sockets is not None:
            self._host_sockets.close(container, self._directory(container))

    def _directory(self, container: str) -> str:
        return f"{self._guest.run}/sockets/{container}"

    def _forwarding(self) -> Forwards:
        from hawse.agent.streams.forwards import Forwards

        with self._lock:
            self._forwards = self._forwards or Forwards()
            return self._forwards

    def _announcing(self) -> Announced:
        from hawse.agent.streams.announced import Announced

        with self._lock:
            self._announced = self._announced or Announced(self._guest.send_event)
            return self._announced

    def _end(self, process: int) -> None:
        self._guest.streams.end(process)
        self._guest.send_event("exit", {"process": process, "code": 0})
