"""The link for programs of threads and blocking reads: the agent, the proxy and the command line.

They do without asyncio, whose import alone costs 54 ms, and twenty times that in a guest without KVM.
"""

from __future__ import annotations

import os
import socket
import threading
from collections import deque
from collections.abc import Iterator

from hawse.errors import LinkError
from hawse.link.flow import ReceiveWindow, SendWindow, encode_credit
from hawse.link.frames import CREDIT, DATA, EOF, MAX_DATA, Decoder, Frame, encode


def end_writing(fd: int) -> None:
    """Tell whoever reads at a socket's other end that nothing more comes; the descriptor stays open, for its own other
    direction. For what is no socket this does nothing."""
    try:
        connection = socket.socket(fileno=fd)
    except OSError:
        return
    try:
        connection.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the other end is gone
    finally:
        connection.detach()


class Port:
    """A file descriptor that frames go through. Any thread may send; one thread reads."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._lock = threading.Lock()

    def send(self, frame: bytes) -> None:
        """Write one encoded frame whole. Raises :class:`LinkError` when the peer is gone."""
        view = memoryview(frame)
        with self._lock:
            while view:
                try:
                    view = view[os.write(self.fd, view) :]
                except OSError as error:
                    raise LinkError(f"link: the peer is gone: {error.strerror}") from None

    def frames(self) -> Iterator[Frame]:
        """Frames until the peer closes. Raises :class:`LinkError` for broken ones and for an end inside of one."""
        decoder = Decoder()
        while True:
            try:
                piece = os.read(self.fd, MAX_DATA)
            except ConnectionResetError:
                piece = b""
            if not piece:
                if decoder.pending:
                    raise LinkError(f"link: the peer closed inside a frame, after {decoder.pending} bytes of it")
                return
            yield from decoder.feed(piece)


class Outgoing:
    """The sending end of a stream: :meth:`write` waits for credit."""

    def __init__(self, port: Port, stream: int) -> None:
        self._port = port
        self._stream = stream
        self._window = SendWindow()
        self._changed = threading.Condition()
        self._closed = False

    def write(self, data: bytes) -> bool:
        """Send all of ``data``, in pieces as the credit allows; False when the stream was closed meanwhile."""
        at = 0
        while at < len(data):
            with self._changed:
                while not self._window.available and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return False
                count = min(len(data) - at, self._window.available, MAX_DATA)
                self._window.spend(count)
            self._port.send(encode(self._stream, DATA, data[at : at + count]))
            at += count
        return True

    def finish(self) -> None:
        """Say that nothing more will come."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
        self._port.send(encode(self._stream, EOF))

    def grant(self, count: int) -> None:
        """A CREDIT frame arrived."""
        with self._changed:
            self._window.grant(count)
            self._changed.notify_all()

    def abandon(self) -> None:
        """Nobody will read this stream any more: wake its writer."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


#: Pieces of fewer bytes are joined while they wait.
_SMALL = 4096


class Incoming:
    """The receiving end of a stream: the link's reader pushes, one other thread gets. Holds at most the window."""

    def __init__(self, port: Port, stream: int) -> None:
        self._port = port
        self._stream = stream
        self._window = ReceiveWindow()
        self._changed = threading.Condition()
        self._pieces: deque[bytes] = deque()
        self._ended = False

    def push(self, data: bytes) -> None:
        """A DATA frame arrived; raises :class:`LinkError` when the peer had no credit for it or had ended."""
        with self._changed:
            if self._ended:
                raise LinkError(f"link: data on stream {self._stream} after its end")
            self._window.receive(len(data))
            # The window bounds bytes, not pieces: one for each byte would take a hundred times as much.
            if self._pieces and len(self._pieces[-1]) < _SMALL:
                self._pieces[-1] += data
            else:
                self._pieces.append(data)
            self._changed.notify()

    def end(self) -> None:
        """An EOF frame arrived, or nothing more will."""
        with self._changed:
            self._ended = True
            self._changed.notify()

    def get(self) -> bytes:
        """The next bytes, waiting for them; empty at the end. Call :meth:`done` when they have been passed on."""
        with self._changed:
            while not self._pieces and not self._ended:
                self._changed.wait()
            return self._pieces.popleft() if self._pieces else b""

    def done(self, count: int) -> None:
        """``count`` bytes have been passed on: give their credit back when it is worth a frame."""
        with self._changed:
            grant = 0 if self._ended else self._window.consume(count)
        if grant:
            self._port.send(encode(self._stream, CREDIT, encode_credit(grant)))
