"""Asking a sandbox's monitor. Standard library only: hot verbs use this."""

from __future__ import annotations

import socket
from contextlib import contextmanager, suppress

from hawse.errors import LinkError, StateError
from hawse.link import control
from hawse.link.blocking import Port
from hawse.link.frames import REPLY
from hawse.state import interface, sockets
from hawse.state.store import Store

TYPE_CHECKING = False  # typing's import would cost a hot verb a tenth of its time
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from hawse.link.frames import Frame


class MonitorGoneError(StateError):
    """The monitor has ended, or is about to."""


class MonitorEndedError(MonitorGoneError):
    """The monitor has ended after it was asked: a call that was to end the sandbox has done that."""


def connect(store: Store) -> socket.socket:
    """A connection to the monitor. Raises :class:`StateError` in runc's words when there is none."""
    try:
        return sockets.connect(store.path, "monitor.sock")
    except OSError:
        store.read()  # raises where there is no such container at all
        raise MonitorGoneError(f"container not running: {store.name}") from None


def check_version(store: Store, method: str) -> None:
    """Raise :class:`StateError` where the monitor is of another version of hawse and would not understand the call.

    One that has no lock yet was started a moment ago, by this command where it creates a container.
    """
    problem = interface.obstacle(method, store.monitor_interface())
    if problem and store.monitor_lives():
        raise StateError(
            f"container {store.name}: {problem}",
            hint="delete the container and create it anew: until then `hawse state`, `list`, `kill` and `delete` work",
        )


@contextmanager
def begin(store: Store, method: str, params: dict[str, Any]) -> Iterator[tuple[object, Iterator[Frame]]]:
    """The monitor's answer, as :func:`call`, and the frames that follow it for as long as the context lasts."""
    with connect(store) as connection:
        check_version(store, method)
        port = Port(connection.fileno())
        port.send(control.encode_call(1, method, params | {"container": store.name}))
        frames = port.frames()
        for _, kind, payload in frames:
            if kind != REPLY:
                raise LinkError("link: the monitor answered with something else than a reply")
            _, answer, error = control.decode_reply(payload)
            if error is not None:
                raise error
            yield answer, frames
            return
        raise MonitorEndedError(f"container not running: {store.name}: its monitor ended before it answered {method}")


def call(store: Store, method: str, params: dict[str, Any], *, until_end: bool = False) -> object:
    """The monitor's answer for this container, or the error that it raised; ``until_end`` waits until the monitor has
    closed the connection: where the sandbox ends, that is the monitor's own end."""
    with begin(store, method, params) as (answer, frames):
        if until_end:
            with suppress(LinkError):  # it ended inside of a frame
                for _ in frames:
                    continue
        return answer
