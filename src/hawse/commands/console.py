"""Terminals on the host: the pair whose master an engine gets, and the raw mode of the user's own."""

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
def raw_mode(fd: int, *, wanted: bool) -> Iterator[None]:
    """The terminal ``fd`` in raw mode for the length of the context, then as it was; nothing for what is none.

    To be entered before the process behind it runs: what it writes first would be changed by the line discipline.
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
