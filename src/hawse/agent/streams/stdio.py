"""A process's stdio and other descriptors: pipes or a terminal in the guest, connected to streams of the link."""

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
    """Pipes for a child's descriptors; socket pairs for descriptors with both directions.

    ``theirs`` maps each of the child's fd numbers to our descriptor of the child's end, until :meth:`close_theirs`.
    ``preserved`` is the number of descriptors after stdio.
    """

    def __init__(self, directions: tuple[str, ...] = STDIO, *, first: int = 0) -> None:
        """Open pipes for the descriptors from ``first`` on. Raises OSError; then nothing is left open."""
        self._ours: dict[int, int] = {}
        self.theirs: dict[int, int] = {}
        self.preserved = len(directions) - len(STDIO)
        try:
            for fd in range(first, len(directions)):
                self._ours[fd], theirs = _pair(directions[fd])
                try:
                    # The number must be above all of the child's: dup2(2) to one of those would close this descriptor.
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

    def set_owner(self, *, uid: int, gid: int) -> None:
        """Set the owner of the pipes: only the owner of a pipe, whichever end it is, can open /dev/stdout again."""
        for fd in self._ours.values():
            os.fchown(fd, uid, gid)

    def close_theirs(self) -> None:
        """Close the child's ends in this process, after the child has inherited them."""
        for fd in self.theirs.values():
            os.close(fd)
        self.theirs = {}

    def release(self) -> dict[int, int]:
        """Our ends by the child's fd numbers. The caller has to close them."""
        ours, self._ours = self._ours, {}
        return ours

    def close(self) -> None:
        """Close all ends that are still open and were not released."""
        self.close_theirs()
        for fd in self.release().values():
            os.close(fd)


class Stdio:
    """The streams of one process, by descriptor. The methods ``attach_*`` start the threads that copy the bytes."""

    def __init__(self, port: Port, process: int, directions: tuple[str, ...]) -> None:
        base = process * STREAMS
        self.directions = directions
        self.inputs = {fd: Incoming(port, base + fd) for fd in read_by(directions)}
        self.outputs = {fd: Outgoing(port, base + fd) for fd in written_by(directions)}
        self._copies: list[threading.Thread] = []
        # Closed when the process has ended. Bytes that are in the pipes by then are still sent, later ones are not.
        self._ended_read, self._ended_write = os.pipe2(os.O_CLOEXEC)
        self._terminal = -1

    def attach_pipes(self, pipes: Pipes) -> None:
        """Serve the pipes. Call it only after crun has succeeded: crun also writes its errors to the pipes."""
        for fd, ours in pipes.release().items():
            if fd in self.inputs:
                # Either direction may end first, and closes its descriptor.
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
        """Serve a connection as the descriptor of this number until both of its directions have ended.

        Raises OSError or RuntimeError if descriptors or threads are exhausted; then the connection is closed.
        """
        ours = connection.detach()
        try:
            copy = self._start_copy(ours, self.outputs[number])
        except (OSError, RuntimeError):
            os.close(ours)
            raise
        self._feed(self.inputs[number], ours)
        copy.join()

    def resize(self, rows: int, columns: int) -> None:
        """Set the terminal's size. Does nothing without a terminal."""
        if self._terminal >= 0:
            fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def finish(self) -> None:
        """Send the remaining output of a process that has ended, then EOF on each stream. Waits for a slow reader."""
        os.close(self._ended_write)
        for copy in self._copies:
            copy.join()
        for output in self.outputs.values():
            output.finish()
        os.close(self._ended_read)
        self._end_inputs()

    def abandon(self) -> None:
        """Close the streams of a process that could not be created, without frames to the host. Call it once."""
        os.close(self._ended_write)
        for output in self.outputs.values():
            output.abandon()
        for copy in self._copies:
            copy.join()
        os.close(self._ended_read)
        self._end_inputs()

    def _end_inputs(self) -> None:
        for source in self.inputs.values():
            source.abandon()

    def _start_copy(self, fd: int, output: Outgoing) -> threading.Thread:
        reading = os.dup(fd)
        try:
            return self._start(self._drain, reading, output)
        except RuntimeError:
            os.close(reading)
            raise

    def _start(self, target: Callable[..., None], *args: object) -> threading.Thread:
        thread = threading.Thread(target=target, args=args, daemon=True)
        thread.start()
        return thread

    def _feed(self, source: Incoming, fd: int) -> None:
        """Copy from the host to the process. If the process closes its end, drop the rest: the link must not stall."""
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
        """Copy from the process to the host, until the last writer closes or the process has ended and all is read."""
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.register(self._ended_read, select.POLLIN)
        try:
            while fd in dict(poll.poll()):  # otherwise the process has ended, and all is read
                data = _read(fd)
                if not data or not output.write(data):
                    break
            output.finish()
        except LinkError:
            pass  # the host has closed the link, which ends this VM
        if fd == self._terminal:
            self._terminal = -1
        os.close(fd)


def _read(fd: int) -> bytes:
    """Read available bytes; b"" at the end.

    The end of a terminal whose last user has closed it is EIO. The end of a socket is ECONNRESET if its other end was
    closed with unread bytes.
    """
    try:
        return os.read(fd, MAX_DATA)
    except OSError as error:
        if error.errno not in (errno.EIO, errno.ECONNRESET):
            raise
        return b""


def _pair(direction: str) -> tuple[int, int]:
    """Create a pipe or socket pair: our end and the process's end."""
    if direction == BOTH:
        ours, theirs = socket.socketpair()
        return ours.detach(), theirs.detach()
    reading, writing = os.pipe2(os.O_CLOEXEC)
    return (writing, reading) if direction == IN else (reading, writing)
