"""Terminals on the host: which combinations make sense, where the master goes, and the user's own terminal."""

from __future__ import annotations

import os
import signal
import socket
import termios
import threading
from pathlib import Path
from typing import Any, cast

import pytest

from hawse.commands.console import raw_mode, send_master
from hawse.commands.process import Handed, attend, check_console
from hawse.commands.spawn import FORWARDED, ProxyProcess
from hawse.errors import HostError, UsageError
from tests.support.patience import patience

DETACHED = "cannot allocate tty if runc will detach without setting console socket"
USELESS = "cannot use console socket if runc will not detach or allocate tty"


@pytest.mark.parametrize(
    ("terminal", "detach", "console", "error"),
    [
        (False, False, None, ""),
        (False, True, None, ""),
        (True, False, None, ""),
        (True, True, "/s", ""),
        (True, True, None, DETACHED),
        (True, False, "/s", USELESS),
        (False, True, "/s", USELESS),
        (False, False, "/s", USELESS),
    ],
)
def test_combinations_are_runcs(terminal: bool, detach: bool, console: str | None, error: str) -> None:
    """Engines show these sentences, and some tests of theirs look for them (utils_linux.go, checkTerminal)."""
    handed = Handed(console, detach)
    if not error:
        check_console(handed, terminal=terminal)
        return
    with pytest.raises(UsageError) as caught:
        check_console(handed, terminal=terminal)
    assert caught.value.message == error


def test_engine_gets_the_master_and_the_slave_is_raw(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    before = len(os.listdir("/proc/self/fd"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
        slave = send_master(path)
        connection, _ = listener.accept()
        with connection:
            name, [master], _, _ = socket.recv_fds(connection, 256, 2)
    try:
        assert name.decode() == os.ttyname(slave)
        assert not termios.tcgetattr(slave)[3] & (termios.ECHO | termios.ICANON)
        os.write(master, b"a\x03")
        assert os.read(slave, 9) == b"a\x03"
    finally:
        os.close(master)
        os.close(slave)
    assert len(os.listdir("/proc/self/fd")) == before


def test_console_socket_that_nobody_listens_at_is_named(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    path = str(tmp_path / "socket")
    with pytest.raises(HostError, match=f"^cannot send the terminal to the console socket {path}: No such file"):
        send_master(path)
    assert len(os.listdir("/proc/self/fd")) == before


def lflag(fd: int) -> int:
    return cast(int, termios.tcgetattr(fd)[3])


def test_users_terminal_is_raw_for_as_long_as_it_is_attached() -> None:
    master, slave = os.openpty()
    cooked = termios.tcgetattr(slave)
    with pytest.raises(KeyError), raw_mode(slave, wanted=True):
        assert not lflag(slave) & termios.ECHO
        raise KeyError
    assert termios.tcgetattr(slave) == cooked
    with raw_mode(slave, wanted=False):
        assert termios.tcgetattr(slave) == cooked
    os.close(master)
    os.close(slave)


def test_terminal_that_is_gone_at_the_end_is_no_error() -> None:
    master, slave = os.openpty()
    with raw_mode(slave, wanted=True):
        os.close(master)
        os.dup2(spare := os.open("/dev/null", os.O_RDONLY), slave)
    os.close(spare)
    os.close(slave)


def test_what_is_no_terminal_stays_as_it_is() -> None:
    reading, writing = os.pipe()
    with raw_mode(reading, wanted=True):
        os.write(writing, b"x")
    assert os.read(reading, 1) == b"x"
    os.close(reading)
    os.close(writing)


class Passive:
    """A proxy that waits for a signal to be passed on to it."""

    relay = None

    def __init__(self) -> None:
        self.got: list[int] = []
        self._done = threading.Event()

    def forward(self, number: int) -> None:
        self.got.append(number)
        self._done.set()

    def wait(self) -> int:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert self._done.wait(patience(10))
        return 6


def test_foreground_passes_signals_on_and_restores_its_handlers() -> None:
    before = [signal.getsignal(number) for number in FORWARDED]
    proxy: Any = Passive()
    assert attend(cast(ProxyProcess, proxy)) == 6
    assert proxy.got == [signal.SIGUSR1]
    assert [signal.getsignal(number) for number in FORWARDED] == before
