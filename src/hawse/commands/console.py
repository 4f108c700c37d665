"""Terminals on the host: a new one whose master is sent to an engine, and the caller's terminal."""

from __future__ import annotations

import os
import socket
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from hawse.errors import HostError


def send_master(console_socket: str) -> int:
    """Open a terminal, send its master to the engine, and return its slave in raw mode.

    The guest's terminal implements the line discipline; this one only carries bytes. The function does not wait for an
    answer: the engine may accept the connection after this program has ended (containerd's shim does so). The payload
    is the terminal's name, as runc sends it. Raises :class:`HostError` that names the socket.
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
def caller_terminal(*, needed: bool) -> Iterator[int]:
    """The descriptor of the caller's terminal; -1 without a terminal, or if it is not ``needed``.

    It is searched as in runc (tty.go, initHostConsole()): stderr, stdout, stdin, then the controlling terminal, which
    stays open for the length of the context.
    """
    fd = next((fd for fd in (2, 1, 0) if needed and os.isatty(fd)), -1)
    if fd >= 0 or not needed:
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
    with caller_terminal(needed=True) as fd:
        return fd >= 0


@contextmanager
def raw_mode(fd: int, *, enabled: bool) -> Iterator[None]:
    """Set the terminal ``fd`` to raw mode for the length of the context; does nothing if it is not a terminal, or
    without ``enabled``.

    Enter the context before the process behind the terminal runs: the line discipline would change its first output.
    """
    if not enabled or not os.isatty(fd):
        yield
        return
    before = termios.tcgetattr(fd)
    tty.setraw(fd)
    try:
        yield
    finally:
        with suppress(termios.error):
            termios.tcsetattr(fd, termios.TCSADRAIN, before)
