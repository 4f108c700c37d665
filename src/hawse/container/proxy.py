"""The proxy: the process that an engine sees in place of a process of the container.

It stands for that process on the host: its pid goes into the pid file, signals sent to it reach the process, its
stdin, stdout and stderr are the process's, and it exits with the process's code. Standard library only, and little of
it: there is one proxy for each process.

``hawse-proxy DIRECTORY KEY TERMINAL VIEW TITLE``: DIRECTORY is an inherited descriptor of the sandbox's directory, VIEW
one for :mod:`hawse.container.view`, or -1. TITLE is what `ps` shows of it, since `docker top` runs the host's ps on the
pids that it is told.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import struct
import sys
import termios
import threading

from hawse.errors import LinkError
from hawse.link import control
from hawse.link.blocking import Incoming, Outgoing, Port
from hawse.link.flow import decode_credit
from hawse.link.frames import CREDIT, DATA, EOF, EVENT, MAX_DATA

_STREAMS, _LOCAL = 4, 1
_STDIN, _STDOUT, _STDERR = (_LOCAL * _STREAMS + n for n in range(3))
#: The exit code when the sandbox ended before the process's own code was known.
LOST = 255
#: More than any memory that it has given back, so that malloc(3) maps it anew; one page of it is used.
_MAPPED = 1024 * 1024


def main() -> None:
    """Serve one process until it has ended."""
    directory, key, terminal = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "terminal"
    _take_title(sys.argv[-1])
    # Blocked here and taken by one thread: a handler could interrupt a send and wait for its lock for ever.
    signals = set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGPIPE}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    if terminal:
        _adopt_terminal()
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(f"/proc/self/fd/{directory}/monitor.sock")
    except OSError:
        os._exit(LOST)  # the monitor has died: whoever has started this process hears of it, and says so
    os.close(directory)
    port = Port(connection.fileno())
    size = _size() if terminal else None
    params = {"key": key} | ({"rows": size[0], "columns": size[1]} if size else {})
    if (view := int(sys.argv[4])) >= 0:
        from hawse.container.view import enter  # here, since other processes than the first do without

        try:
            enter(view)
        except OSError as error:
            params["failure"] = f"{error.strerror}{f': {error.filename}' if error.filename else ''}"
    port.send(control.encode_call(1, "proxy", params))
    stdin = Outgoing(port, _STDIN)
    outputs = {_STDOUT: Incoming(port, _STDOUT), _STDERR: Incoming(port, _STDERR)}
    writers = [_thread(_write, outputs[stream], target) for stream, target in ((_STDOUT, 1), (_STDERR, 2))]
    _thread(_read, stdin)
    _thread(_forward_signals, port, signals, terminal)
    code = _serve(port, stdin, outputs)
    for output in outputs.values():
        output.end()
    for writer in writers:
        writer.join()
    os._exit(code)  # the thread that reads stdin may never return


def _serve(port: Port, stdin: Outgoing, outputs: dict[int, Incoming]) -> int:
    charged = bytearray()
    try:
        for stream, kind, payload in port.frames():
            if kind == EVENT:
                name, params = control.decode_event(payload)
                if name == "exit":
                    return int(params["code"])
                if name == "placed":
                    # What it has taken so far was charged to the cgroup that it came from (cgroup-v1/memory.rst, 2.3),
                    # and a container without any memory has no statistics for Kubernetes: so a page of a new mapping.
                    charged = bytearray(_MAPPED)
                    charged[_MAPPED // 2] = 1
            elif kind == CREDIT and stream == _STDIN:
                stdin.grant(decode_credit(payload))
            elif kind == DATA and stream in outputs:
                outputs[stream].push(payload)
            elif kind == EOF and stream in outputs:
                outputs[stream].end()
    except LinkError:
        pass
    return LOST


def _write(source: Incoming, fd: int) -> None:
    """Process to engine. A reader that is gone makes the rest be dropped: the process shall end all the same."""
    broken = False
    while data := source.get():
        view = memoryview(data)
        while view and not broken:
            try:
                view = view[os.write(fd, view) :]
            except BlockingIOError:  # somebody made the shared description non-blocking
                _wait_writable(fd)
            except OSError:
                broken = True
        try:
            source.done(len(data))
        except LinkError:
            pass  # the monitor has told all and is gone; what it told last is still here
    try:
        os.close(fd)
    except OSError:
        return


def _read(stdin: Outgoing) -> None:
    """Engine to process."""
    try:
        while True:
            try:
                data = os.read(0, MAX_DATA)
            except OSError:
                data = b""
            if not data:
                stdin.finish()
                return
            if not stdin.write(data):
                return
    except LinkError:
        return


def _forward_signals(port: Port, signals: set[int], terminal: bool) -> None:
    while True:
        number = signal.sigwait(signals)
        try:
            if terminal and number == signal.SIGWINCH:
                rows, columns = _size() or (0, 0)
                port.send(control.encode_event("resize", {"rows": rows, "columns": columns}))
            else:
                port.send(control.encode_event("signal", {"number": int(number)}))
        except LinkError:
            return


def _take_title(title: str) -> None:
    """Have ps show the title: in place of this program's arguments, where the kernel reads them from (proc(5), stat
    fields 48 and 49). The title is one of them, so there is room for it."""
    try:
        with open("/proc/self/comm", "w") as comm:
            comm.write("hawse-proxy")
        with open("/proc/self/stat", "rb") as stat:
            fields = stat.read().rpartition(b")")[2].split()
        start, end = int(fields[45]), int(fields[46])
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            memory.seek(start)
            memory.write(os.fsencode(title)[: end - start - 1].ljust(end - start, b"\0"))
    except (OSError, ValueError, IndexError):
        return  # a kernel that does not let itself be written to shows the arguments


def _adopt_terminal() -> None:
    """Make fd 0 the controlling terminal, so that the kernel tells of a new size; it is someone else's in `run`."""
    try:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    except OSError:
        return


def _size() -> tuple[int, int] | None:
    try:
        rows, columns, _, _ = struct.unpack("HHHH", fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8)))
    except OSError:
        return None
    return (rows, columns) if rows and columns else None


def _wait_writable(fd: int) -> None:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    poll.poll()


def _thread(target: object, *args: object) -> threading.Thread:
    thread = threading.Thread(target=target, args=args, daemon=True)  # type: ignore[arg-type]
    thread.start()
    return thread


if __name__ == "__main__":
    main()
