"""The proxy: the host process that represents a process of the container to an engine.

Its pid is in the pid file, signals sent to it are forwarded to the container's process, its stdin, stdout, stderr and
preserved descriptors are connected to those of the process, and it exits with the process's code. Standard library
only, and as little of it as possible, since one proxy runs for every process.

``hawse-proxy DIRECTORY KEY TERMINAL VIEW DESCRIPTORS NOTIFY TITLE``. Inherited descriptors: DIRECTORY is that of the
sandbox's directory; TERMINAL, or -1, that of a terminal whose size the process's terminal gets; VIEW, or -1, that of
the request for :mod:`hawse.proxy.view`; NOTIFY, or -1, a connected socket for the process's notifications
(sd_notify(3)). DESCRIPTORS are the directions of the descriptors from 3 on, such as "in,both". TITLE is the command
line that `ps` shows, since `docker top` runs the host's ps on the pids that hawse reports.
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
from hawse.link import messages
from hawse.link.blocking import Incoming, Outgoing, Port, end_writing
from hawse.link.flow import decode_credit
from hawse.link.frames import CREDIT, DATA, EOF, EVENT, MAX_DATA
from hawse.link.streams import STREAMS, directions, read_by, written_by

TYPE_CHECKING = False  # typing's import would cost a proxy a tenth of its time
if TYPE_CHECKING:
    from collections.abc import Callable
    from queue import SimpleQueue

#: The number of the first stream of the proxy's process, the only one on its connection.
_BASE = STREAMS
#: The exit code when the sandbox ended before the process's own code was known.
LOST = 255
#: Larger than any freed block, so that malloc(3) creates a new mapping; one page of it is used.
_MAPPED = 1024 * 1024
#: The capacity of the queue to a service manager that does not read; further notifications are dropped.
_MOST_NOTICES = 64
#: How long the proxy waits at its end until the queued notifications are sent.
_NOTIFY_SECONDS = 1.0


def main() -> None:
    """Serve one process until it has ended."""
    directory, key, terminal = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    _take_title(sys.argv[-1])
    # Block signals here; one thread receives them with sigwait(3). A signal handler could interrupt a send and wait
    # forever for the lock that the send holds.
    signals = set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGPIPE}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    if terminal >= 0:
        _adopt_terminal(terminal)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(f"/proc/self/fd/{directory}/monitor.sock")
    except OSError:
        os._exit(LOST)  # the monitor has died; the command that started this process reports it
    os.close(directory)
    port = Port(connection.fileno())
    size = _size(terminal) if terminal >= 0 else None
    preserved = sys.argv[5].split(",") if sys.argv[5] else []
    params = {"key": key, "descriptors": preserved} | ({"rows": size[0], "columns": size[1]} if size else {})
    notices: SimpleQueue[bytes] | None = None
    if (notify := int(sys.argv[6])) >= 0:
        from queue import SimpleQueue as Queue  # imported here, since few processes send notifications

        notices = Queue()
    if (view := int(sys.argv[4])) >= 0:
        # Imported here, since only the first process has a view. Import the modules for _confine(), too: nothing can be
        # imported after enter().
        from hawse.linux import landlock, process_capabilities, processes  # noqa: F401
        from hawse.proxy import system_calls  # noqa: F401
        from hawse.proxy.view import enter

        try:
            enter(view)
        except OSError as error:
            params["failure"] = f"{error.strerror}{f': {error.filename}' if error.filename else ''}"
    # Before the call, after which the monitor moves this process to the container's cgroups: a monitor that has dropped
    # its privileges cannot move a process with more capabilities than its own to a cpuset of version 1 (Linux
    # kernel/cgroup/cpuset.c, cpuset_can_attach(); security/commoncap.c, cap_safe_nice()).
    _drop_capabilities()
    port.send(messages.encode_call(1, "proxy", params))
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


def _drop_capabilities() -> None:
    from hawse.linux import process_capabilities

    _try(partial(process_capabilities.keep_only, ()))


def _confine() -> None:
    """Drop all other privileges: everything that the proxy uses from here on is open. Call it after the call to the
    monitor, since it takes some milliseconds.
    """
    from hawse.linux import landlock, processes
    from hawse.proxy import system_calls

    for step in (processes.give_up_privileges, landlock.restrict, system_calls.install):
        _try(step)


def _try(step: Callable[[], object]) -> None:
    """Skip a step that the kernel refuses, without a message: stderr is the container's, and the process needs its
    proxy more."""
    try:
        step()
    except OSError:
        pass


def _serve(
    port: Port, inputs: dict[int, Outgoing], outputs: dict[int, Incoming], notices: SimpleQueue[bytes] | None
) -> int:
    charged = bytearray()
    try:
        for stream, kind, payload in port.frames():
            if kind == EVENT:
                name, params = messages.decode_event(payload)
                if name == "exit":
                    return int(params["code"])
                if name == "notify" and notices is not None and notices.qsize() < _MOST_NOTICES:
                    notices.put(str(params["notice"]).encode())
                if name == "placed":
                    # The proxy's memory so far was charged to its previous cgroup (cgroup-v1/memory.rst, 2.3), and
                    # Kubernetes has no statistics of a container that uses no memory. So write to a page of a new
                    # mapping, which is charged to the new cgroup.
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
    """Copy a stream from the process to the engine. After the reader has gone, the rest is dropped, so that the process
    does not block.

    ``read_too``: another thread reads from the same descriptor, so that only its writing side is closed.
    """
    broken = False
    while data := source.get():
        view = memoryview(data)
        while view and not broken:
            try:
                view = view[os.write(fd, view) :]
            except BlockingIOError:  # another process made the shared open file description non-blocking
                _wait(fd, select.POLLOUT)
            except OSError:
                broken = True
        try:
            source.done(len(data))
        except LinkError:
            pass  # the monitor has ended; its last data is still in the queue
    if read_too:
        end_writing(fd)
        return
    try:
        os.close(fd)
    except OSError:
        return


def _notify(notices: SimpleQueue[bytes], fd: int) -> None:
    """Send notifications to the service manager, in a separate thread, since the service manager may read slowly."""
    while notice := notices.get():
        try:
            os.write(fd, notice)
        except OSError:
            continue  # the service manager has closed its socket


def _read(target: Outgoing, fd: int) -> None:
    """Copy a stream from the engine to the process."""
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
                port.send(messages.encode_event("resize", {"rows": rows, "columns": columns}))
            else:
                port.send(messages.encode_event("signal", {"number": int(number)}))
        except LinkError:
            return


def _take_title(title: str) -> None:
    """Make ps show the title: overwrite this program's arguments in memory, where the kernel reads them (proc(5), stat
    fields 48 and 49). The title is one of the arguments, so it fits."""
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
        return  # if the kernel refuses the write, ps shows the arguments


def _adopt_terminal(fd: int) -> None:
    """Make it the controlling terminal, so that the kernel sends SIGWINCH. In `run` it is that of another session: the
    request fails, and `run` forwards SIGWINCH."""
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
