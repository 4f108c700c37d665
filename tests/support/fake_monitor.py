"""A monitor without a sandbox: it holds the lock and answers on the socket of a real state directory."""

from __future__ import annotations

import fcntl
import os
import queue
import socket
import termios
import threading
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any

from hawse.errors import HawseError
from hawse.link import messages
from hawse.link.blocking import Port
from hawse.link.frames import HEADER
from hawse.state import sockets
from hawse.state.store import RUNNING, Store, start_time
from tests.support.patience import patience

#: An answer that closes the connection without a reply.
HANG_UP = object()


def _payloads(connection: socket.socket) -> Iterator[bytes]:
    """The payloads of frames, read one by one: data after a proxy's call belong to the new owner of the connection."""
    while header := connection.recv(HEADER.size, socket.MSG_WAITALL):
        yield connection.recv(HEADER.unpack(header)[2], socket.MSG_WAITALL)


class FakeMonitor:
    """Records every call in ``calls``, and answers with ``answers[method]``. A connection is for one call.

    An answer is a value, an error to send, :data:`HANG_UP`, or a function of the parameters that returns one of these.
    A ``proxy`` connection is put into ``proxies`` with its parameters.
    """

    def __init__(self, store: Store, answers: dict[str, Any] | None = None, **state: Any) -> None:
        self.store = store
        self.answers: dict[str, Any] = {"delete": lambda _: self.end()} | (answers or {})
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.proxies: queue.Queue[tuple[socket.socket, dict[str, Any]]] = queue.Queue()
        self._answered = 0
        self._threads: list[threading.Thread] = []
        self._open: set[socket.socket] = set()
        if not os.path.isdir(store.path):
            store.make()
        self._lock = store.lock()
        me = os.getpid()
        self.state: dict[str, Any] = {"id": store.name, "ociVersion": "1.0.2", "bundle": "/b", "rootfs": "/b/rootfs"}
        self.state |= {"created": "2026-01-02T03:04:05Z", "owner": "root", "pid": me, "pidStart": start_time(me)}
        self.state |= {"status": RUNNING, "monitorPid": me} | state
        store.write(self.state)
        self._listener = sockets.bind(store.path, "monitor.sock")
        self._start(self._accept)

    def __enter__(self) -> FakeMonitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(patience(10))
        while not self.proxies.empty():  # of processes that the test did not start
            self.proxies.get()[0].close()

    def change(self, **state: Any) -> None:
        """Change the state file."""
        self.state |= state
        self.store.write(self.state)

    def end(self) -> None:
        """End the monitor: release its lock and stop listening."""
        if self._lock >= 0:
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            os.close(self._lock)
            self._lock = -1

    def hang_up(self) -> None:
        """Close the open connections, as a monitor that ends does."""
        for connection in list(self._open):
            connection.shutdown(socket.SHUT_RDWR)

    @property
    def has_answered(self) -> bool:
        """Whether every call was answered, and its caller has read the answer (tty_ioctl(2), TIOCOUTQ)."""
        unread = (fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)) for connection in list(self._open))
        return self._answered == len(self.calls) and not any(map(any, unread))

    @property
    def methods(self) -> list[str]:
        """The methods that were called, in order."""
        return [method for method, _ in self.calls]

    def _start(self, run: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=run, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._open.add(connection)
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        port = Port(connection.fileno())
        with suppress(HawseError, OSError):
            for payload in _payloads(connection):
                number, method, params = messages.decode_call(payload)
                if method == "proxy":
                    self._open.discard(connection)
                    self.proxies.put((connection, params))
                    return
                self.calls.append((method, params))
                answer = self.answers.get(method)
                if callable(answer):
                    answer = answer(params)
                if answer is HANG_UP:
                    break
                if isinstance(answer, HawseError):
                    port.send(messages.encode_error(number, answer))
                else:
                    port.send(messages.encode_result(number, answer))
                self._answered += 1
                if not (method == "start" and params.get("notify")):  # which waits for the event "ready"
                    break
        self._open.discard(connection)
        connection.close()
