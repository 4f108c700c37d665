"""Name servers that listen on the loopback of the container's network on the host, Docker's at 127.0.0.11 say.

The guest has a loopback of its own, so the agent listens there, and each query goes over the link to the monitor,
which asks the server in the network namespace and calls back with the answer (RFC 1035, section 4.2).
"""

from __future__ import annotations

import binascii
import itertools
import socket
import threading
import time

from hawse.errors import VmError

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    Answer = Callable[[bytes], None]

_PORT = 53
#: A message begins with a header of 12 bytes (section 4.1.1), and over TCP two bytes say its length (section 4.2.2).
_MIN, _MAX = 12, 65535
#: Queries without an answer yet; of more the oldest is forgotten, and its program asks again.
_MAX_PENDING = 128
#: Connections at once, each with a thread and a descriptor of the guest's first process; more wait in the kernel.
_MAX_CONNECTIONS = 32
_SECONDS = 15.0
_PAUSE = 0.1


class Resolver:
    """``ask`` takes the parameters of the event ``query``."""

    def __init__(self, ask: Callable[[dict[str, Any]], None]) -> None:
        self._ask = ask
        self._numbers = itertools.count(1)
        self._pending: dict[int, Answer] = {}
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(_MAX_CONNECTIONS)

    def serve(self, *, servers: Sequence[str], port: int = _PORT) -> None:
        """Be these name servers from now on. Raises :class:`VmError` where something else is already."""
        for server in servers:
            try:
                datagrams = _bound(socket.SOCK_DGRAM, server, port)
                streams = _bound(socket.SOCK_STREAM, server, port)
                streams.listen()
            except OSError as error:
                raise VmError(f"the guest cannot listen for name queries at {server}: {error.strerror}") from None
            threading.Thread(target=self._serve_datagrams, args=(server, datagrams), daemon=True).start()
            threading.Thread(target=self._serve_streams, args=(server, streams), daemon=True).start()

    def answer(self, *, number: int, message: str) -> None:
        """The host's answer to a query, in base64."""
        with self._lock:
            answer = self._pending.pop(number, None)
        if answer is not None:
            answer(binascii.a2b_base64(message))

    def _query(self, server: str, transport: str, message: bytes, answer: Answer) -> None:
        with self._lock:
            number = next(self._numbers)
            self._pending[number] = answer
            while len(self._pending) > _MAX_PENDING:
                del self._pending[next(iter(self._pending))]
        text = binascii.b2a_base64(message, newline=False).decode()
        self._ask({"number": number, "server": server, "transport": transport, "message": text})

    def _serve_datagrams(self, server: str, port: socket.socket) -> None:
        while True:
            message, peer = port.recvfrom(_MAX)
            if len(message) < _MIN:
                continue  # any program of the container can send it; no name server answers it

            def answer(data: bytes, peer: Any = peer) -> None:
                try:
                    port.sendto(data, peer)
                except OSError:
                    return  # its program has gone

            self._query(server, "udp", message, answer)

    def _serve_streams(self, server: str, listener: socket.socket) -> None:
        while True:
            self._slots.acquire()
            try:
                connection, _ = listener.accept()
            except OSError:  # it has gone already, or there is no descriptor for it now (accept(2), ERRORS)
                self._slots.release()
                time.sleep(_PAUSE)
                continue
            threading.Thread(target=self._serve_stream, args=(server, connection), daemon=True).start()

    def _serve_stream(self, server: str, connection: socket.socket) -> None:
        try:
            with connection:
                connection.settimeout(_SECONDS)
                self._answer_all(server, connection)
        finally:
            self._slots.release()

    def _answer_all(self, server: str, connection: socket.socket) -> None:
        """Answer a connection's queries, one after the other, until its program ends it or sends what is none."""
        with connection.makefile("rb") as stream:
            try:
                while len(length := stream.read(2)) == 2:
                    size = int.from_bytes(length, "big")
                    message = stream.read(size)
                    if size < _MIN or len(message) < size:
                        return
                    came = threading.Event()
                    answers: list[bytes] = []

                    def answer(data: bytes, answers: list[bytes] = answers, came: threading.Event = came) -> None:
                        answers.append(data)
                        came.set()

                    self._query(server, "tcp", message, answer)
                    if not came.wait(_SECONDS):
                        return
                    connection.sendall(len(answers[0]).to_bytes(2, "big") + answers[0])
            except OSError:
                return


def _bound(kind: int, server: str, port: int) -> socket.socket:
    """A socket that leaves the port to a container's own name server, where that lets others have it too."""
    made = socket.socket(socket.AF_INET, kind | socket.SOCK_CLOEXEC)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((server, port))
    except OSError:
        made.close()
        raise
    return made
