"""Connections in the guest end, and report their end, even if the guest has no descriptors or threads left."""

from __future__ import annotations

import socket
import threading

import pytest

from hawse.agent.streams.forwards import Forwards
from hawse.agent.streams.stdio import Stdio
from hawse.link.blocking import Port
from hawse.link.frames import EOF
from hawse.link.streams import BOTH, STREAMS, directions
from tests.support.patience import patience


class Exhausted(Stdio):
    """The streams of a connection whose second thread cannot be started."""

    def __init__(self, port: Port, error: Exception) -> None:
        super().__init__(port, 1, directions([BOTH]))
        self._error = error

    def _start_copy(self, *_: object) -> threading.Thread:
        raise self._error


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), RuntimeError("can't start new thread")])
def test_connection_that_cannot_be_served_ends_for_both_sides(error: Exception) -> None:
    ours, theirs = socket.socketpair()
    program, connection = socket.socketpair()
    ended = threading.Event()
    with ours, theirs, program:
        Forwards().serve(1, Exhausted(Port(ours.fileno()), error), connection, ended=ended.set)
        assert ended.wait(patience(10))
        assert program.recv(1) == b""
        ours.shutdown(socket.SHUT_WR)
        frames = [(stream - STREAMS, kind) for stream, kind, _ in Port(theirs.fileno()).frames()]
        assert sorted(frames) == [(1, EOF), (2, EOF), (3, EOF)]
