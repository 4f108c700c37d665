"""Client of a sandbox's monitor. Standard library only: hot verbs use this."""

from __future__ import annotations

import socket
from contextlib import contextmanager, suppress

from hawse.errors import LinkError, StateError
from hawse.link import messages
from hawse.link.blocking import Port
from hawse.link.frames import REPLY
from hawse.state import interface, sockets
from hawse.state.store import Store

TYPE_CHECKING = False  # typing's import would cost a hot verb a tenth of its time
if TYPE_CHECKING:
    from collections.abc import Iterator

    from hawse.json_text import Document
    from hawse.link.frames import Frame


class MonitorGoneError(StateError):
    """The monitor has ended, or is about to end."""


class MonitorEndedError(MonitorGoneError):
    """The monitor ended before it answered a call. A call that ends the sandbox has succeeded then."""


def connect(store: Store) -> socket.socket:
    """Connect to the monitor. Raises :class:`StateError` with runc's text if the monitor does not listen."""
    try:
        return sockets.connect(store.path, "monitor.sock")
    except OSError:
        store.read()  # raises NotFoundError if the container does not exist
        raise MonitorGoneError(f"container not running: {store.name}") from None


def check_version(store: Store, method: str) -> None:
    """Raise :class:`StateError` if another version of hawse started the monitor and it would not understand the call.

    A monitor without a lock passes: it was started a moment ago, usually by the command that creates
    the container.
    """
    problem = interface.obstacle(method, store.monitor_interface())
    if problem and store.monitor_lives():
        raise StateError(
            f"container {store.name}: {problem}",
            hint="delete the container and create it again; until then only state, list, kill and delete work",
        )


@contextmanager
def begin(store: Store, method: str, params: Document) -> Iterator[tuple[object, Iterator[Frame]]]:
    """Call the monitor as :func:`call` does. Yields its answer and an iterator over the frames that follow it."""
    with connect(store) as connection:
        check_version(store, method)
        port = Port(connection.fileno())
        port.send(messages.encode_call(1, method, params | {"container": store.name}))
        frames = port.frames()
        for _, kind, payload in frames:
            if kind != REPLY:
                raise LinkError("link: the monitor answered with a frame that is not a reply")
            _, answer, error = messages.decode_reply(payload)
            if error is not None:
                raise error
            yield answer, frames
            return
        raise MonitorEndedError(f"container not running: {store.name}: its monitor ended before it answered {method}")


def call(store: Store, method: str, params: Document, *, until_end: bool = False) -> object:
    """Call a method of the monitor for this container. Returns its answer, or raises the error that it reported.

    ``until_end``: wait until the monitor has closed the connection. When the sandbox ends, the monitor has exited then.
    """
    with begin(store, method, params) as (answer, frames):
        if until_end:
            with suppress(LinkError):  # the monitor ended within a frame
                for _ in frames:
                    continue
        return answer
