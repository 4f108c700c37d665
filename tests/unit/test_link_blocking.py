"""The link's blocking ends: frames over a socket, credit, and the behaviour when the peer closes."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest

from hawse.errors import LinkError
from hawse.link.blocking import Incoming, Outgoing, Port, end_writing
from hawse.link.flow import WINDOW
from hawse.link.frames import CREDIT, DATA, EOF, HEADER, MAX_DATA, Frame, encode
from tests.support.patience import patience

Ends = tuple[socket.socket, socket.socket]
_SECONDS = int(patience(3))


@pytest.fixture
def ends() -> Iterator[Ends]:
    ours, theirs = socket.socketpair()
    for each in (ours, theirs):  # a read without an end is an error; not settimeout(), which needs select()
        each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", _SECONDS, 0))
    with ours, theirs:
        yield ours, theirs


def port(end: socket.socket) -> Port:
    return Port(end.fileno())


def begin(act: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


def end(thread: threading.Thread) -> None:
    thread.join(_SECONDS)
    assert not thread.is_alive()


def test_frames_are_read_until_the_peer_closes(ends: Ends) -> None:
    """A frame of the maximum size is larger than a socket's buffer."""
    ours, theirs = ends
    sent: list[Frame] = [(1, DATA, bytes(MAX_DATA)), (2, EOF, b""), (1, DATA, b"x" * 1000)]

    def send() -> None:
        for frame in sent:
            port(ours).send(encode(*frame))
        ours.shutdown(socket.SHUT_WR)

    sender = begin(send)
    assert list(port(theirs).frames()) == sent
    end(sender)


def test_end_of_the_link_inside_a_frame_is_an_error(ends: Ends) -> None:
    ours, theirs = ends
    ours.sendall(encode(1, DATA, b"whole") + HEADER.pack(1, DATA, 9) + b"cut")
    ours.shutdown(socket.SHUT_WR)
    frames = port(theirs).frames()
    assert next(frames) == (1, DATA, b"whole")
    with pytest.raises(LinkError, match="the peer closed the link inside a frame, after 12 bytes of it"):
        next(frames)


def test_peer_that_exits_with_unread_data_counts_as_closed(ends: Ends) -> None:
    ours, theirs = ends
    ours.sendall(encode(1, EOF))
    theirs.close()
    assert list(port(ours).frames()) == []
    with pytest.raises(LinkError, match="link: the peer has closed the link: Broken pipe"):
        port(ours).send(encode(1, EOF))


def test_writer_waits_for_credit_and_sends_pieces(ends: Ends) -> None:
    ours, theirs = ends
    stream = Outgoing(port(ours), 7)
    data = os.urandom(WINDOW + 100)
    answers: list[bool] = []
    writer = begin(lambda: answers.append(stream.write(data)))
    frames, received = port(theirs).frames(), b""
    while len(received) < WINDOW:
        number, kind, piece = next(frames)
        assert (number, kind) == (7, DATA)
        received += piece
    assert len(received) == WINDOW, "the writer has no more credit"
    stream.grant(60)
    received += next(frames)[2]
    assert len(received) == WINDOW + 60
    stream.grant(WINDOW)
    received += next(frames)[2]
    end(writer)
    assert (received, answers) == (data, [True])
    writer = begin(lambda: answers.append(stream.write(bytes(WINDOW - 40))))
    received = b""
    while len(received) < WINDOW - 40:
        received += next(frames)[2]
    end(writer)
    stream.finish()
    stream.finish()
    ours.shutdown(socket.SHUT_WR)
    assert list(frames) == [(7, EOF, b"")]
    assert stream.write(b"more") is False


def test_waiting_writer_returns_when_its_stream_is_closed(ends: Ends) -> None:
    ours, theirs = ends
    stream = Outgoing(port(ours), 7)
    answers: list[bool] = []
    writer = begin(lambda: answers.append(stream.write(bytes(WINDOW + 1))))
    frames, received = port(theirs).frames(), 0
    while received < WINDOW:
        received += len(next(frames)[2])
    stream.abandon()
    end(writer)
    assert answers == [False]
    stream.finish()
    ours.shutdown(socket.SHUT_WR)
    assert list(frames) == [], "no end is sent for an abandoned stream"


def test_reader_waits_for_data_and_returns_credit(ends: Ends) -> None:
    ours, theirs = ends
    stream = Incoming(port(ours), 7)
    pieces: list[bytes] = []

    def read() -> None:
        while piece := stream.get():
            pieces.append(piece)
            stream.done(len(piece))

    reader = begin(read)
    for piece in (b"one", bytes(MAX_DATA), b"two"):
        stream.push(piece)
    assert next(port(theirs).frames()) == (7, CREDIT, (MAX_DATA + 3).to_bytes(4, "big"))
    stream.end()
    end(reader)
    assert b"".join(pieces) == b"one" + bytes(MAX_DATA) + b"two"
    with pytest.raises(LinkError, match="data on stream 7 after its end"):
        stream.push(b"x")


def test_small_waiting_pieces_are_joined(ends: Ends) -> None:
    """The credit limits only their bytes, and each piece takes additional memory."""
    ours, _ = ends
    stream = Incoming(port(ours), 7)
    for _ in range(10_000):
        stream.push(b"x")
    stream.push(bytes(MAX_DATA))
    assert [len(stream.get()) for _ in range(3)] == [4096, 4096, 10_000 - 2 * 4096 + MAX_DATA]


def test_no_credit_is_returned_after_the_end(ends: Ends) -> None:
    """Bytes pushed before the end are still read; the peer sends no more."""
    ours, theirs = ends
    stream = Incoming(port(ours), 7)
    stream.push(bytes(MAX_DATA))
    stream.end()
    assert len(stream.get()) == MAX_DATA
    stream.done(MAX_DATA)
    assert stream.get() == b""
    ours.shutdown(socket.SHUT_WR)
    assert list(port(theirs).frames()) == []


def test_end_of_writing_shuts_down_sockets_only(ends: Ends) -> None:
    ours, theirs = ends
    end_writing(ours.fileno())
    assert theirs.recv(1) == b""
    theirs.sendall(b"still open")
    assert ours.recv(100) == b"still open"
    theirs.close()
    end_writing(ours.fileno())
    reading, writing = os.pipe()
    end_writing(writing)
    os.write(writing, b"x")
    assert os.read(reading, 1) == b"x"
    os.close(reading)
    os.close(writing)


def test_data_for_an_abandoned_stream_is_dropped(ends: Ends) -> None:
    """The peer has sent it before it learned that its reader is gone."""
    ours, _ = ends
    incoming = Incoming(port(ours), 64)
    incoming.push(b"before")
    incoming.abandon()
    incoming.push(bytes(2**20))
    assert (incoming.get(), incoming.get()) == (b"before", b"")
