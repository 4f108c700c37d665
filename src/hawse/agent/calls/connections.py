"""Calls about connections between the host and the guest, in both directions, and about name queries.

Most guests never have one: the modules are imported when the first is asked for.
"""

from __future__ import annotations

import threading
from functools import partial

from hawse.agent.calls.guest import Guest

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from hawse.agent.streams.dials import Dials
    from hawse.agent.streams.forwards import Forwards
    from hawse.agent.streams.resolver import Resolver


class ConnectionCalls:
    """Connections that the host asks for, and connections of containers that the host accepts."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._lock = threading.Lock()
        self._resolver: Resolver | None = None
        self._forwards: Forwards | None = None
        self._dials: Dials | None = None

    def connect(self, *, process: int, port: int) -> None:
        """Connect to a port of the loopback for the host, which chose the number of the connection."""
        try:
            stdio, ended = self._guest.streams.of(process), partial(self._end, process)
            self._forwarding().connect(process, stdio, port=port, ended=ended)
        except BaseException:
            self._guest.streams.abandon(process)
            raise

    def disconnect(self, *, process: int) -> None:
        """The host's side of a connection is gone."""
        if self._forwards is not None:
            self._forwards.disconnect(process)

    def accept(self, *, process: int, connection: int) -> None:
        """The host has connected to its socket for a connection that was announced."""
        dials = self._dialling()
        try:
            accepted = dials.take(connection)
        except BaseException:
            self._guest.streams.abandon(process)
            raise

        def ended() -> None:
            dials.release()
            self._end(process)

        self._forwarding().serve(process, self._guest.streams.of(process), accepted, ended=ended)

    def refuse(self, *, connection: int) -> None:
        """The host could not connect to its socket."""
        self._dialling().refuse(connection)

    def serve_names(self, *, servers: list[str]) -> None:
        """Pass queries for these name servers to the host."""
        from hawse.agent.streams.resolver import Resolver

        if self._resolver is None:
            self._resolver = Resolver(partial(self._guest.send_event, "query"))
        self._resolver.serve(servers=servers)

    def answer_name(self, *, number: int, message: str) -> None:
        """The host's answer to a query."""
        if self._resolver is not None:
            self._resolver.answer(number=number, message=message)

    def listen(self, container: str, sockets: list[tuple[str, int, int, int]]) -> None:
        """Create the sockets of a container that stand for sockets of the host: name, mode, uid and gid of each."""
        self._dialling().listen(container, sockets, self._directory(container))

    def close(self, container: str) -> None:
        """Remove the sockets of a container."""
        if self._dials is not None:
            self._dials.close(container, self._directory(container))

    def _directory(self, container: str) -> str:
        return f"{self._guest.run}/sockets/{container}"

    def _forwarding(self) -> Forwards:
        from hawse.agent.streams.forwards import Forwards

        with self._lock:
            self._forwards = self._forwards or Forwards()
            return self._forwards

    def _dialling(self) -> Dials:
        from hawse.agent.streams.dials import Dials

        def announce(container: str, name: str, number: int) -> None:
            self._guest.send_event("dial", {"container": container, "socket": name, "connection": number})

        with self._lock:
            self._dials = self._dials or Dials(announce)
            return self._dials

    def _end(self, process: int) -> None:
        self._guest.streams.end(process)
        self._guest.send_event("exit", {"process": process, "code": 0})
