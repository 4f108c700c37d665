"""A process's stdio and other descriptors: pipes or a terminal on this side, streams of the link on the other."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import struct
import termios
import threading
from collections.abc import Callable

from hawse.errors import LinkError
from hawse.link.blocking import Incoming, Outgoing, Port, end_writing
from hawse.link.frames import MAX_DATA
from hawse.link.streams import BOTH, IN, STDIO, STREAMS, read_by, written_by

_STDIN, _STDOUT, _STDERR = range(3)


class Pipes:
    """Pipes for a child's descriptors, pairs of sockets for those of both directions.

    ``theirs``: {the child's fd: our fd of its end}, until :meth:`handed_on`; ``preserved``: how many follow stdio.
    """

    def __init__(self, directions: tuple[str, ...] = STDIO, *, first: int = 0) -> None:
        """For the descriptors from ``first`` on. Raises OSError, with nothing left open."""
        self._ours: dict[int, int] = {}
        self.theirs: dict[int, int] = {}
        self.preserved = len(directions) - len(STDIO)
        try:
            for fd in range(first, len(directions)):
                self._ours[fd], theirs = _pair(directions[fd])
                try:
                    # Above all that the child gets: where one of those is put in place, it would close this one.
                    self.theirs[fd] = fcntl.fcntl(theirs, fcntl.F_DUPFD_CLOEXEC, STREAMS)
                finally:
                    os.close(theirs)
        except OSError:
            self.close()
            raise

    def __enter__(self) -> Pipes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def give_to(self, *, uid: int, gid: int) -> None:
        """Set who owns them: /dev/stdout can only be opened again by who owns the pipe, whichever its end."""
        for fd in self._ours.values():
            os.fchown(fd, uid, gid)

    def handed_on(self) -> None:
        """The child has its ends."""
        for fd in self.theirs.values():
            os.close(fd)
        self.theirs = {}

    def release(self) -> dict[int, int]:
        """{the child's fd: our end}, now the caller's."""
        ours, self._ours = self._ours, {}
        return ours

    def close(self) -> None:
        """Close what was neither handed on nor released."""
        self.handed_on()
        for fd in self.release().values():
            os.close(fd)


class Stdio:
    """The streams of one process, by descriptor. ``attach_*`` starts the threads that copy."""

    def __init__(self, port: Port, process: int, directions: tuple[str, ...]) -> None:
        base = process * STREAMS
        self.directions = directions
        self.inputs = {fd: Incoming(port, base + fd) for fd in read_by(directions)}
        self.outputs = {fd: Outgoing(port, base + fd) for fd in written_by(directions)}
        self._copies: list[threading.Thread] = []
        # Closed when the process has ended: what is in the pipes then is still sent, what comes later is not.
        self._ended_read, self._ended_write = os.pipe2(os.O_CLOEXEC)
        self._terminal = -1

    def attach_pipes(self, pipes: Pipes) -> None:
        """Serve the pipes. Not before crun has succeeded: its complaints come out of them as well as into its log."""
        for fd, ours in pipes.release().items():
            if fd in self.inputs:
                # Either direction may end before the other, and closes what it has.
                self._start(self._feed, self.inputs[fd], os.dup(ours) if fd in self.outputs else ours)
            if fd in self.outputs:
                self._copies.append(self._start(self._drain, ours, self.outputs[fd]))

    def attach_terminal(self, master: int) -> None:
        """Serve the master side of the process's terminal as its stdio."""
        self._terminal = master
        self._start(self._feed, self.inputs[_STDIN], os.dup(master))
        self._copies.append(self._start(self._drain, master, self.outputs[_STDOUT]))
        self.outputs[_STDERR].finish()

    def serve_socket(self, number: int, connection: socket.socket) -> None:
        """Serve a connection as the descriptor of this number until both of its directions have ended."""
        ours = connection.detach()
        copy = self._start(self._drain, os.dup(ours), self.outputs[number])
        self._feed(self.inputs[number], ours)
        copy.join()

    def resize(self, rows: int, columns: int) -> None:
        """Set the terminal's size; without a terminal nothing."""
        if self._terminal >= 0:
            fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def finish(self) -> None:
        """The process has ended: send what it left, then the ends of the streams. Waits for a slow reader."""
        os.close(self._ended_write)
        for copy in self._copies:
            copy.join()
        for output in self.outputs.values():
            output.finish()
        os.close(self._ended_read)
        self._end_inputs()

    def abandon(self) -> None:
        """End the streams of a process that could not be created, without frames to the host. Call it once."""
        os.close(self._ended_write)
        for output in self.outputs.values():
            output.abandon()
        for copy in self._copies:
            copy.join()
        os.close(self._ended_read)
        self._end_inputs()

    def _end_inputs(self) -> None:
        for source in self.inputs.values():
            source.end()

    def _start(self, target: Callable[..., None], *args: object) -> threading.Thread:
        thread = threading.Thread(target=target, args=args, daemon=True)
        thread.start()
        return thread

    def _feed(self, source: Incoming, fd: int) -> None:
        """Host to process. A process that closed its end makes the rest be dropped, not the link be stalled."""
        broken = False
        while data := source.get():
            view = memoryview(data)
            while view and not broken:
                try:
                    view = view[os.write(fd, view) :]
                except OSError:
                    broken = True
            try:
                source.done(len(data))
            except LinkError:
                break
        end_writing(fd)
        os.close(fd)

    def _drain(self, fd: int, output: Outgoing) -> None:
        """Process to host, until the last writer is gone or, after the process's end, nothing is left."""
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.register(self._ended_read, select.POLLIN)
        try:
            while fd in dict(poll.poll()):  # else the process has ended, and nothing is left
                data = _read(fd)
                if not data or not output.write(data):
                    break
            output.finish()
        except LinkError:
            pass  # the host is gone, and this machine with it
        if fd == self._terminal:
            self._terminal = -1
        os.close(fd)


def _read(fd: int) -> bytes:
    """What is there, nothing at the end: of a terminal whose last user is gone, and of a socket whose other end was
    closed with something unread, that is an error."""
    try:
        return os.read(fd, MAX_DATA)
    except OSError as error:
        if error.errno not in (errno.EIO, errno.ECONNRESET):
            raise
        return b""


def _pair(direction: str) -> tuple[int, int]:
    """Our end and the process's."""
    if direction == BOTH:
        ours, theirs = socket.socketpair()
        return ours.detach(), theirs.detach()
    reading, writing = os.pipe2(os.O_CLOEXEC)
    return (writing, reading) if direction == IN else (reading, writing)
