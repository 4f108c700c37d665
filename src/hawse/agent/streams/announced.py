"""Connections of the guest's programs that the agent announces to the host, by an event with the connection's number.

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

#: Connections of one kind at once. Further clients wait in the listen backlog.
MOST = 64
_PAUSE_SECONDS = 1.0


class Announced:
    """Connections that the host has neither accepted nor refused yet."""

    def __init__(self, send: Send) -> None:
        """``send`` sends an event."""
        self._send = send
        self._numbers = itertools.count(1)
        self._waiting: dict[int, tuple[socket.socket, Callable[[], None]]] = {}

    def announce(self, event: str, fields: Document, connection: socket.socket, *, ended: Callable[[], None]) -> None:
        """Send the event, with the field ``connection``. ``ended`` is called when the connection has ended.

        Raises :class:`LinkError` if the host has gone, and this VM with it.
        """
        number = next(self._numbers)
        self._waiting[number] = (connection, ended)
        self._send(event, {**fields, "connection": number})

    def take(self, number: int) -> tuple[socket.socket, Callable[[], None]]:
        """A connection that the host accepts, and what the caller must call when it has ended.

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
    room: threading.Semaphore,
) -> None:
    """Announce each connection to a socket, which does not block, while ``room`` has a place for it.

    ``announce`` gets the connection and a function to call at its end. Returns if ``is_open`` is false or the host has
    gone.
    """
    waiting = select.poll()
    waiting.register(listening, select.POLLIN)
    while True:
        # Before there is a client, a socket must not take the capacity of others.
        waiting.poll()
        room.acquire()
        try:
            connection, _ = listening.accept()
        except OSError:
            room.release()
            if not is_open():
                return
            time.sleep(_PAUSE_SECONDS)  # the client has gone, or no descriptors or memory are left (accept(2))
            continue
        connection.setblocking(True)
        try:
            announce(connection, room.release)
        except LinkError:
            return  # the host has gone, and this VM ends with the link
