"""A process's stdio: pipes or a terminal on this side, streams of the link on the other."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct
import termios
import threading
from collections.abc import Callable

from hawse.errors import LinkError
from hawse.link.blocking import Incoming, Outgoing, Port
from hawse.link.frames import MAX_DATA

STDIN, STDOUT, STDERR = 0, 1, 2
#: Streams per process: its n-th stream is ``process * STREAMS + n``, so process 0 is the control stream's.
STREAMS = 4


class Pipes:
    """Pipes for a child's fds 0 to 2. ``theirs``: {fd: our fd of its end}, until :meth:`handed_on`."""

    def __init__(self) -> None:
        stdin_read, stdin_write = os.pipe2(os.O_CLOEXEC)
        stdout_read, stdout_write = os.pipe2(os.O_CLOEXEC)
        stderr_read, stderr_write = os.pipe2(os.O_CLOEXEC)
        self._ours = [stdin_write, stdout_read, stderr_read]
        self.theirs = {0: stdin_read, 1: stdout_write, 2: stderr_write}

    def give_to(self, *, uid: int, gid: int) -> None:
        """Set who owns them: /dev/stdout can only be opened again by who owns the pipe, whichever its end."""
        for fd in self._ours:
            os.fchown(fd, uid, gid)

    def handed_on(self) -> None:
        """The child has its ends."""
        for fd in self.theirs.values():
            os.close(fd)
        self.theirs = {}

    def release(self) -> list[int]:
        """Our ends of the three, now the caller's."""
        ours, self._ours = self._ours, []
        return ours

    def close(self) -> None:
        """Close what was neither handed on nor released."""
        self.handed_on()
        for fd in self.release():
            os.close(fd)


class Stdio:
    """The streams of one process. ``attach_*`` starts the threads that copy."""

    def __init__(self, port: Port, process: int) -> None:
        base = process * STREAMS
        self.stdin = Incoming(port, base + STDIN)
        self.outputs = {base + STDOUT: Outgoing(port, base + STDOUT), base + STDERR: Outgoing(port, base + STDERR)}
        self._stdout, self._stderr = self.outputs.values()
        self._copies: list[threading.Thread] = []
        # Closed when the process has ended: what is in the pipes then is still sent, what comes later is not.
        self._ended_read, self._ended_write = os.pipe2(os.O_CLOEXEC)
        self._terminal = -1

    def attach_pipes(self, pipes: Pipes) -> None:
        """Serve the pipes. Not before crun has succeeded: its complaints come out of them as well as into its log."""
        stdin, stdout, stderr = pipes.release()
        self._start(self._feed, stdin, True)
        self._copies.append(self._start(self._drain, stdout, self._stdout))
        self._copies.append(self._start(self._drain, stderr, self._stderr))

    def attach_terminal(self, master: int) -> None:
        """Serve the master side of the process's terminal."""
        self._terminal = master
        self._start(self._feed, os.dup(master), False)
        self._copies.append(self._start(self._drain, master, self._stdout))
        self._stderr.finish()

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
        self.stdin.end()

    def abandon(self) -> None:
        """The process never came to be."""
        for fd in (self._ended_read, self._ended_write):
            os.close(fd)
        for output in self.outputs.values():
            output.abandon()
        self.stdin.end()

    def _start(self, target: Callable[..., None], *args: object) -> threading.Thread:
        thread = threading.Thread(target=target, args=args, daemon=True)
        thread.start()
        return thread

    def _feed(self, fd: int, close_at_end: bool) -> None:
        """Host to process. A process that closed its stdin makes the rest be dropped, not the link be stalled."""
        broken = False
        while data := self.stdin.get():
            view = memoryview(data)
            while view and not broken:
                try:
                    view = view[os.write(fd, view) :]
                except OSError:
                    broken = True
            try:
                self.stdin.done(len(data))
            except LinkError:
                break
        if close_at_end or broken:
            os.close(fd)

    def _drain(self, fd: int, output: Outgoing) -> None:
        """Process to host, until the last writer is gone or, after the process's end, nothing is left."""
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.register(self._ended_read, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if fd not in ready:  # the process has ended, and nothing is left
                break
            try:
                data = os.read(fd, MAX_DATA)
            except OSError as error:
                if error.errno != errno.EIO:  # a terminal whose last user is gone
                    raise
                data = b""
            try:
                if not data or not output.write(data):
                    break
            except LinkError:
                break
        if fd == self._terminal:
            self._terminal = -1
        os.close(fd)
