"""The link for programs that use threads and blocking reads: the agent, the proxy and the command line.

They do not use asyncio, whose import takes 54 ms, and twenty times that in a guest without KVM.
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
    """Shut down the writing direction of a socket, so that the other end reads the end of file. The descriptor stays
    open for reading. Does nothing if ``fd`` is not a socket."""
    try:
        connection = socket.socket(fileno=fd)
    except OSError:
        return
    try:
        connection.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the other end is closed
    finally:
        connection.detach()


class Port:
    """Frames over a file descriptor. Any thread may send; one thread reads."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._lock = threading.Lock()

    def send(self, frame: bytes) -> None:
        """Write one encoded frame completely. Raises :class:`LinkError` when the peer has closed the link."""
        view = memoryview(frame)
        with self._lock:
            while view:
                try:
                    view = view[os.write(self.fd, view) :]
                except OSError as error:
                    raise LinkError(f"link: the peer has closed the link: {error.strerror}") from None

    def frames(self) -> Iterator[Frame]:
        """Read frames until the peer closes the link. Raises :class:`LinkError` for an invalid or a truncated frame."""
        decoder = Decoder()
        while True:
            try:
                piece = os.read(self.fd, MAX_DATA)
            except ConnectionResetError:
                piece = b""
            if not piece:
                if decoder.pending:
                    raise LinkError(
                        f"link: the peer closed the link inside a frame, after {decoder.pending} bytes of it"
                    )
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
        """Send all of ``data``, in pieces as the credit allows; returns False if the stream is closed meanwhile."""
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
        """Send an EOF frame; later writes return False."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
        self._port.send(encode(self._stream, EOF))

    def grant(self, count: int) -> None:
        """Handle a CREDIT frame: allow ``count`` more bytes."""
        with self._changed:
            self._window.grant(count)
            self._changed.notify_all()

    def abandon(self) -> None:
        """Close the stream without a frame, since its reader is gone, and wake the writer."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


#: Waiting pieces of fewer bytes are joined.
_SMALL = 4096


class Incoming:
    """The receiving end of a stream: the link's reader calls :meth:`push`, one other thread calls :meth:`get`.

    It stores at most a window of bytes.
    """

    def __init__(self, port: Port, stream: int) -> None:
        self._port = port
        self._stream = stream
        self._window = ReceiveWindow()
        self._changed = threading.Condition()
        self._pieces: deque[bytes] = deque()
        self._ended = False
        self._abandoned = False

    def push(self, data: bytes) -> None:
        """Handle a DATA frame. Raises :class:`LinkError` if the peer had no credit for it or had sent EOF before."""
        with self._changed:
            if self._abandoned:
                return
            if self._ended:
                raise LinkError(f"link: data on stream {self._stream} after its end")
            self._window.receive(len(data))
            # The window limits bytes, not pieces: pieces of one byte would take a hundred times as much memory.
            if self._pieces and len(self._pieces[-1]) < _SMALL:
                self._pieces[-1] += data
            else:
                self._pieces.append(data)
            self._changed.notify()

    def end(self) -> None:
        """Handle an EOF frame, or the end of the link."""
        with self._changed:
            self._ended = True
            self._changed.notify()

    def abandon(self) -> None:
        """End the stream because its reader is gone. Data that the peer has sent meanwhile is dropped."""
        with self._changed:
            self._abandoned = self._ended = True
            self._changed.notify()

    def get(self) -> bytes:
        """Wait for the next bytes; empty at the end. Call :meth:`done` when they have been passed on."""
        with self._changed:
            while not self._pieces and not self._ended:
                self._changed.wait()
            return self._pieces.popleft() if self._pieces else b""

    def done(self, count: int) -> None:
        """Record that ``count`` bytes have been passed on; returns credit to the peer when it is worth a frame."""
        with self._changed:
            grant = 0 if self._ended else self._window.consume(count)
        if grant:
            self._port.send(encode(self._stream, CREDIT, encode_credit(grant)))
