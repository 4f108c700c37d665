"""Connections of programs in the guest that the agent announces to the host, by an event with the connection's number.

The host answers with ``accept``, and the connection becomes a stream of the link, or with ``refuse``.
"""

from __future__ import annotations

import itertools
import select
import socket
import threading
import time

from hawse.errors import LinkError, NotFoundError

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from collections.abc import Callable

    from hawse.json_text import Document

    Send = Callable[[str, Document], None]

#: Maximum connections of one kind at a time. Further clients wait in the listen backlog.
MOST = 64
_PAUSE_SECONDS = 1.0


class Announced:
    """Announced connections that the host has neither accepted nor refused yet."""

    def __init__(self, send: Send) -> None:
        """``send`` sends an event."""
        self._send = send
        self._numbers = itertools.count(1)
        self._waiting: dict[int, tuple[socket.socket, Callable[[], None]]] = {}

    def announce(self, event: str, fields: Document, connection: socket.socket, *, ended: Callable[[], None]) -> None:
        """Send the event, with the field ``connection``. ``ended`` is called when the connection has ended.

        Raises :class:`LinkError` if the host has closed the link, which ends this VM.
        """
        number = next(self._numbers)
        self._waiting[number] = (connection, ended)
        self._send(event, {**fields, "connection": number})

    def take(self, number: int) -> tuple[socket.socket, Callable[[], None]]:
        """Remove a connection that the host accepts. Returns it, and a function to call when it has ended.

        Raises :class:`NotFoundError`.
        """
        try:
            return self._waiting.pop(number)
        except KeyError:
            raise NotFoundError(f"connection {number} does not exist in the guest") from None

    def refuse(self, number: int) -> None:
        """Close a connection that the host does not accept. Raises :class:`NotFoundError`."""
        connection, ended = self.take(number)
        connection.close()
        ended()


def accept_all(
    listening: socket.socket,
    announce: Callable[[socket.socket, Callable[[], None]], None],
    *,
    is_open: Callable[[], bool] = lambda: True,
    capacity: threading.Semaphore,
) -> None:
    """Accept and announce connections to a non-blocking socket, as many at a time as ``capacity`` allows.

    ``announce`` receives the connection and a function to call at its end. Returns when ``is_open`` is false or the
    host has closed the link.
    """
    poll = select.poll()
    poll.register(listening, select.POLLIN)
    while True:
        # A socket without a client must not use capacity that other sockets need.
        poll.poll()
        capacity.acquire()
        try:
            connection, _ = listening.accept()
        except OSError:
            capacity.release()
            if not is_open():
                return
            # The client has closed the connection, or descriptors or memory are exhausted (accept(2)).
            time.sleep(_PAUSE_SECONDS)
            continue
        connection.setblocking(True)
        try:
            announce(connection, capacity.release)
        except LinkError:
            return  # the host has closed the link, which ends this VM
