"""Name servers on the loopback of the container's network on the host, for example Docker's at 127.0.0.11.

The guest's loopback is separate, so the agent listens at these addresses in the guest. It announces each connection
over TCP. It announces each query over UDP as a connection that carries the query and the answer in the format for TCP:
two bytes of length before each message (RFC 1035, section 4.2.2). The host connects it to the server in the network
namespace.
"""

from __future__ import annotations

import select
import socket
import threading
from functools import partial

from hawse.agent.streams.announced import MOST, Announced, accept_all
from hawse.errors import LinkError, VmError

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

_PORT = 53
#: A message begins with a header of 12 bytes (RFC 1035, section 4.1.1).
_MIN, _MAX = 12, 65535


class NameServers:
    """All name servers of the guest. Queries beyond the capacity are dropped; programs repeat such a query."""

    def __init__(self, announced: Announced) -> None:
        self._announced = announced
        self._capacity = threading.Semaphore(MOST)

    def serve(self, *, servers: Sequence[str], port: int = _PORT) -> None:
        """Listen at these addresses from now on. Raises :class:`VmError` if one is in use."""
        for server in servers:
            try:
                datagrams = _bound(socket.SOCK_DGRAM, server, port)
                listening = _bound(socket.SOCK_STREAM, server, port)
                listening.listen()
                listening.setblocking(False)
            except OSError as error:
                raise VmError(f"the guest cannot listen for name queries at {server}: {error.strerror}") from None
            queries = _Datagrams(server, datagrams, self._announced, self._capacity)
            threading.Thread(target=queries.serve, daemon=True).start()
            accept = partial(accept_all, listening, partial(self._announce, server), capacity=self._capacity)
            threading.Thread(target=accept, daemon=True).start()

    def _announce(self, server: str, connection: socket.socket, ended: Callable[[], None]) -> None:
        self._announced.announce("query", {"server": server, "transport": "tcp"}, connection, ended=ended)


class _Datagrams:
    """Queries over UDP for one server. Queries beyond ``capacity`` are dropped."""

    def __init__(self, server: str, port: socket.socket, announced: Announced, capacity: threading.Semaphore) -> None:
        self._server = server
        self._port = port
        self._announced = announced
        self._capacity = capacity
        self._poll = select.poll()
        #: By descriptor: our end of the connection, the program's address, and the received part of the answer.
        self._queries: dict[int, tuple[socket.socket, Any, bytearray]] = {}

    def serve(self) -> None:
        """Serve until the host closes the link."""
        self._poll.register(self._port, select.POLLIN)
        while True:
            for descriptor, _ in self._poll.poll():
                try:
                    if descriptor in self._queries:
                        self._answer(descriptor)
                    else:
                        self._ask()
                except LinkError:
                    return  # the host has closed the link, which ends this VM

    def _ask(self) -> None:
        message, program = self._port.recvfrom(_MAX)
        # Programs of the container can also send shorter messages, which no name server answers.
        if len(message) < _MIN or not self._capacity.acquire(blocking=False):
            return
        try:
            ours, theirs = _carrying(message)
        except OSError:  # descriptors or memory are exhausted
            self._capacity.release()
            return
        self._queries[ours.fileno()] = (ours, program, bytearray())
        self._poll.register(ours, select.POLLIN)
        fields = {"server": self._server, "transport": "udp"}
        self._announced.announce("query", fields, theirs, ended=self._capacity.release)

    def _answer(self, descriptor: int) -> None:
        """Read more of an answer, and send it to the program when it is complete."""
        ours, program, answer = self._queries[descriptor]
        data = _read(ours)
        answer += data
        size = int.from_bytes(answer[:2], "big")
        complete = len(answer) >= 2 and len(answer) >= 2 + size
        if data and not complete:
            return
        if complete:
            _send(self._port, bytes(answer[2 : 2 + size]), program)
        self._poll.unregister(ours)
        del self._queries[descriptor]
        ours.close()


def _carrying(message: bytes) -> tuple[socket.socket, socket.socket]:
    """A pair of sockets; the message can be read from the second one."""
    ours, theirs = socket.socketpair()
    try:
        # The buffer of a new pair of sockets, 208 KiB, is larger than any message (socket(7), wmem_default).
        ours.sendall(len(message).to_bytes(2, "big") + message)
        ours.shutdown(socket.SHUT_WR)
    except OSError:
        ours.close()
        theirs.close()
        raise
    return ours, theirs


def _read(connection: socket.socket) -> bytes:
    try:
        return connection.recv(2 + _MAX)
    except OSError:  # the connection was reset
        return b""


def _send(port: socket.socket, answer: bytes, program: Any) -> None:
    try:
        port.sendto(answer, program)
    except OSError:
        return  # the program has ended


def _bound(kind: int, server: str, port: int) -> socket.socket:
    """A bound socket. A name server in a container can use the same port if it sets SO_REUSEADDR, too."""
    bound = socket.socket(socket.AF_INET, kind | socket.SOCK_CLOEXEC)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((server, port))
    except OSError:
        bound.close()
        raise
    return bound
