"""The proxy: the process that an engine sees in place of a process of the container.

It stands for that process on the host: its pid goes into the pid file, signals sent to it reach the process, its
stdin, stdout, stderr and preserved descriptors are the process's, and it exits with the process's code. Standard
library only, and little of it: there is one proxy for each process.

``hawse-proxy DIRECTORY KEY TERMINAL VIEW DESCRIPTORS NOTIFY TITLE``: DIRECTORY is an inherited descriptor of the
sandbox's directory, TERMINAL that of a terminal whose size the process's terminal gets, or -1; VIEW is one for
:mod:`hawse.proxy.view`, or -1. DESCRIPTORS are the directions of those from 3 on,
"in,both" say. NOTIFY is a connected socket for the process's notifications (sd_notify(3)), or -1. TITLE is what `ps`
shows of it, since `docker top` runs the host's ps on the pids that it is told.
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
from functools import partial

from hawse.errors import LinkError
from hawse.link import control
from hawse.link.blocking import Incoming, Outgoing, Port, end_writing
from hawse.link.flow import decode_credit
from hawse.link.frames import CREDIT, DATA, EOF, EVENT, MAX_DATA
from hawse.link.streams import STREAMS, directions, read_by, written_by

TYPE_CHECKING = False  # typing's import would cost a proxy a tenth of its time
if TYPE_CHECKING:
    from queue import SimpleQueue

#: The first stream of the one process that it knows.
_BASE = STREAMS
#: The exit code when the sandbox ended before the process's own code was known.
LOST = 255
#: More than any memory that it has given back, so that malloc(3) maps it anew; one page of it is used.
_MAPPED = 1024 * 1024
#: Notifications that wait for a service manager that does not read; those beyond are dropped.
_MOST_NOTICES = 64
#: How long the last ones may take.
_NOTIFY_SECONDS = 1.0


def main() -> None:
    """Serve one process until it has ended."""
    directory, key, terminal = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    _take_title(sys.argv[-1])
    # Blocked here and taken by one thread: a handler could interrupt a send and wait for its lock for ever.
    signals = set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGPIPE}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    if terminal >= 0:
        _adopt_terminal(terminal)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(f"/proc/self/fd/{directory}/monitor.sock")
    except OSError:
        os._exit(LOST)  # the monitor has died: whoever has started this process hears of it, and says so
    os.close(directory)
    port = Port(connection.fileno())
    size = _size(terminal) if terminal >= 0 else None
    preserved = sys.argv[5].split(",") if sys.argv[5] else []
    params = {"key": key, "descriptors": preserved} | ({"rows": size[0], "columns": size[1]} if size else {})
    notices: SimpleQueue[bytes] | None = None
    if (notify := int(sys.argv[6])) >= 0:
        from queue import SimpleQueue as Queue  # here, since few processes have somebody to notify

        notices = Queue()
    if (view := int(sys.argv[4])) >= 0:
        # Here, since only the first process has a view; and the modules of _confine(), which cannot be loaded in it.
        from hawse.linux import capabilities, landlock, processes  # noqa: F401
        from hawse.proxy import system_calls  # noqa: F401
        from hawse.proxy.view import enter

        try:
            enter(view)
        except OSError as error:
            params["failure"] = f"{error.strerror}{f': {error.filename}' if error.filename else ''}"
    port.send(control.encode_call(1, "proxy", params))
    _confine()
    process = directions(preserved)
    inputs = {fd: Outgoing(port, _BASE + fd) for fd in read_by(process)}
    outputs = {fd: Incoming(port, _BASE + fd) for fd in written_by(process)}
    writers = [_thread(_write, source, fd, fd in inputs) for fd, source in outputs.items()]
    for fd, target in inputs.items():
        _thread(_read, target, fd)
    _thread(_forward_signals, port, signals, terminal)
    notifier = _thread(_notify, notices, notify) if notices is not None else None
    code = _serve(port, inputs, outputs, notices)
    for output in outputs.values():
        output.end()
    for writer in writers:
        writer.join()
    if notices is not None and notifier is not None:
        notices.put(b"")
        notifier.join(_NOTIFY_SECONDS)
    os._exit(code)  # a thread that reads may never return


def _confine() -> None:
    """Give up every right: all that the proxy uses from here on is open. After its announcement, since this takes 5 ms.

    A step that the kernel refuses is left out: stderr is the container's, and the proxy's work matters more.
    """
    from hawse.linux import capabilities, landlock, processes
    from hawse.proxy import system_calls

    no_capabilities = partial(capabilities.keep_only, ())
    for step in (no_capabilities, processes.give_up_privileges, landlock.restrict, system_calls.install):
        try:
            step()
        except OSError:
            continue


def _serve(
    port: Port, inputs: dict[int, Outgoing], outputs: dict[int, Incoming], notices: SimpleQueue[bytes] | None
) -> int:
    charged = bytearray()
    try:
        for stream, kind, payload in port.frames():
            if kind == EVENT:
                name, params = control.decode_event(payload)
                if name == "exit":
                    return int(params["code"])
                if name == "notify" and notices is not None and notices.qsize() < _MOST_NOTICES:
                    notices.put(str(params["notice"]).encode())
                if name == "placed":
                    # What it has taken so far was charged to the cgroup that it came from (cgroup-v1/memory.rst, 2.3),
                    # and a container without any memory has no statistics for Kubernetes: so a page of a new mapping.
                    charged = bytearray(_MAPPED)
                    charged[_MAPPED // 2] = 1
            elif kind == CREDIT and (fd := stream - _BASE) in inputs:
                inputs[fd].grant(decode_credit(payload))
            elif kind == DATA and (fd := stream - _BASE) in outputs:
                outputs[fd].push(payload)
            elif kind == EOF and (fd := stream - _BASE) in outputs:
                outputs[fd].end()
    except LinkError:
        pass
    return LOST


def _write(source: Incoming, fd: int, read_too: bool = False) -> None:
    """Process to engine. A reader that is gone makes the rest be dropped: the process shall end all the same.

    ``read_too``: another thread reads from the descriptor, which stays open for that.
    """
    broken = False
    while data := source.get():
        view = memoryview(data)
        while view and not broken:
            try:
                view = view[os.write(fd, view) :]
            except BlockingIOError:  # somebody made the shared description non-blocking
                _wait(fd, select.POLLOUT)
            except OSError:
                broken = True
        try:
            source.done(len(data))
        except LinkError:
            pass  # the monitor has told all and is gone; what it told last is still here
    if read_too:
        end_writing(fd)
        return
    try:
        os.close(fd)
    except OSError:
        return


def _notify(notices: SimpleQueue[bytes], fd: int) -> None:
    """To the service manager. It may be slow to read: a thread of its own waits for that."""
    while notice := notices.get():
        try:
            os.write(fd, notice)
        except OSError:
            continue  # nobody listens any more


def _read(target: Outgoing, fd: int) -> None:
    """Engine to process."""
    try:
        while True:
            try:
                data = os.read(fd, MAX_DATA)
            except BlockingIOError:
                _wait(fd, select.POLLIN)
                continue
            except OSError:
                data = b""
            if not data:
                target.finish()
                return
            if not target.write(data):
                return
    except LinkError:
        return


def _forward_signals(port: Port, signals: set[int], terminal: int) -> None:
    while True:
        number = signal.sigwait(signals)
        try:
            if terminal >= 0 and number == signal.SIGWINCH:
                rows, columns = _size(terminal) or (0, 0)
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


def _adopt_terminal(fd: int) -> None:
    """Make it the controlling terminal, so that the kernel sends SIGWINCH. In `run` it belongs to another session."""
    try:
        fcntl.ioctl(fd, termios.TIOCSCTTY, 0)
    except OSError:
        return


def _size(fd: int) -> tuple[int, int] | None:
    try:
        rows, columns, _, _ = struct.unpack("HHHH", fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8)))
    except OSError:
        return None
    return (rows, columns) if rows and columns else None


def _wait(fd: int, event: int) -> None:
    poll = select.poll()
    poll.register(fd, event)
    poll.poll()


def _thread(target: object, *args: object) -> threading.Thread:
    thread = threading.Thread(target=target, args=args, daemon=True)  # type: ignore[arg-type]
    thread.start()
    return thread


if __name__ == "__main__":
    main()
