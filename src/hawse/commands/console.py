"""Terminals on the host: the one whose master is sent to an engine, and the caller's."""

from __future__ import annotations

import os
import socket
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from hawse.errors import HostError


def send_master(console_socket: str) -> int:
    """Make a terminal, send its master to the engine, return its slave in raw mode.

    The guest's terminal does the line discipline; this one only carries bytes. The engine may accept the connection
    after this program has ended, so nothing is waited for (containerd's shim does it that way). The payload is the
    terminal's name, as runc's is. Raises :class:`HostError` naming the socket.
    """
    master, slave = os.openpty()
    try:
        tty.setraw(slave)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(console_socket)
            socket.send_fds(connection, [os.ttyname(slave).encode()], [master])
    except OSError as error:
        os.close(slave)
        raise HostError(
            f"cannot send the terminal to the console socket {console_socket}: {error.strerror}",
            hint="--console-socket names a listening AF_UNIX stream socket",
        ) from None
    finally:
        os.close(master)
    return slave


@contextmanager
def caller_terminal(*, wanted: bool) -> Iterator[int]:
    """The descriptor of the caller's terminal; -1 without a terminal, or if it is not ``wanted``.

    Searched as runc does it (tty.go, initHostConsole()): stderr, stdout, stdin, then the controlling terminal, which is
    open for as long as the context.
    """
    fd = next((fd for fd in (2, 1, 0) if wanted and os.isatty(fd)), -1)
    if fd >= 0 or not wanted:
        yield fd
        return
    with suppress(OSError):
        fd = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        if fd >= 0:
            os.close(fd)


def has_terminal() -> bool:
    """Whether the caller has a terminal."""
    with caller_terminal(wanted=True) as fd:
        return fd >= 0


@contextmanager
def raw_mode(fd: int, *, wanted: bool) -> Iterator[None]:
    """Set the terminal ``fd`` to raw mode for the length of the context; does nothing if it is not a terminal.

    Enter the context before the process behind the terminal runs: the line discipline would change its first output.
    """
    if not wanted or not os.isatty(fd):
        yield
        return
    before = termios.tcgetattr(fd)
    tty.setraw(fd)
    try:
        yield
    finally:
        with suppress(termios.error):
            termios.tcsetattr(fd, termios.TCSADRAIN, before)
