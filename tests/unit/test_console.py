"""Terminals on the host: which combinations of options are accepted, the console socket, and the caller's terminal."""

from __future__ import annotations

import os
import pty
import signal
import socket
import subprocess
import sys
import termios
import threading
from pathlib import Path
from typing import Any, cast

import pytest

from hawse.commands.console import caller_terminal, raw_mode, send_master
from hawse.commands.host_process import IoOptions, attend, check_console
from hawse.commands.spawn import FORWARDED, ProxyProcess
from hawse.errors import HostError, UsageError
from tests.support.patience import patience

NO_TERMINAL = (
    "cannot allocate a terminal: stdin, stdout and stderr are not terminals, and open /dev/tty: "
    "no such device or address"
)
DETACHED = "cannot allocate tty if runc will detach without setting console socket"
USELESS = "cannot use console socket if runc will not detach or allocate tty"


@pytest.mark.parametrize(
    ("terminal", "detach", "console", "available", "error"),
    [
        (False, False, None, False, ""),
        (False, True, None, False, ""),
        (True, False, None, True, ""),
        (True, False, None, False, NO_TERMINAL),
        (True, True, "/s", False, ""),
        (True, True, None, True, DETACHED),
        (True, False, "/s", True, USELESS),
        (False, True, "/s", True, USELESS),
        (False, False, "/s", True, USELESS),
    ],
)
def test_combinations_are_those_of_runc(
    terminal: bool, detach: bool, console: str | None, available: bool, error: str
) -> None:
    """Engines show runc's sentences, and some of their tests compare them (utils_linux.go, checkTerminal)."""
    io_options = IoOptions(console, detach)
    if not error:
        check_console(io_options, terminal=terminal, available=lambda: available)
        return
    with pytest.raises(UsageError) as caught:
        check_console(io_options, terminal=terminal, available=lambda: available)
    assert caught.value.message == error
    assert caught.value.hint


PROGRAM = """
from hawse.commands.console import caller_terminal, has_terminal
with caller_terminal(needed=True) as terminal, open({!r}, "w") as file:
    print(terminal, has_terminal(), file=file)
"""


@pytest.mark.parametrize(
    ("terminals", "expected"), [((), -1), ((0,), 0), ((1,), 1), ((2,), 2), ((0, 1, 2), 2), ((0, 1), 1)]
)
def test_terminal_of_the_caller_is_stderr_stdout_or_stdin(
    tmp_path: Path, terminals: tuple[int, ...], expected: int
) -> None:
    """In this order, as runc searches them; a new session has no controlling terminal."""
    master, slave = os.openpty()
    with open(tmp_path / "file", "w+b") as file:
        stdin, stdout, stderr = (slave if number in terminals else file.fileno() for number in range(3))
        argv = [sys.executable, "-c", PROGRAM.format(str(tmp_path / "answer"))]
        subprocess.run(argv, stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=True, check=True)
    assert (tmp_path / "answer").read_text() == f"{expected} {expected >= 0}\n"
    os.close(master)
    os.close(slave)


def test_controlling_terminal_is_found_and_closed_again() -> None:
    """`hawse run` with all of its streams redirected, in a terminal."""
    pid, master = pty.fork()
    if not pid:
        os._exit(_controlled())
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(master)


def _controlled() -> int:
    """In a process with a controlling terminal: 0 if it is found and closed again."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    before = len(os.listdir("/proc/self/fd"))
    with caller_terminal(needed=True) as fd:
        is_found = fd > 2 and os.isatty(fd)
    with caller_terminal(needed=False) as fd:
        is_found = is_found and fd == -1
    return 0 if is_found and len(os.listdir("/proc/self/fd")) == before else 1


def test_console_socket_receives_the_master_and_the_slave_is_raw(tmp_path: Path) -> None:
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


def test_console_socket_without_a_listener_is_named(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    path = str(tmp_path / "socket")
    with pytest.raises(HostError, match=f"^cannot send the terminal to the console socket {path}: No such file"):
        send_master(path)
    assert len(os.listdir("/proc/self/fd")) == before


def lflag(fd: int) -> int:
    return cast(int, termios.tcgetattr(fd)[3])


def test_callers_terminal_is_raw_until_the_end_of_the_context() -> None:
    master, slave = os.openpty()
    cooked = termios.tcgetattr(slave)
    with pytest.raises(KeyError), raw_mode(slave, enabled=True):
        assert not lflag(slave) & termios.ECHO
        raise KeyError
    assert termios.tcgetattr(slave) == cooked
    with raw_mode(slave, enabled=False):
        assert termios.tcgetattr(slave) == cooked
    os.close(master)
    os.close(slave)


def test_terminal_that_was_closed_meanwhile_is_not_an_error() -> None:
    master, slave = os.openpty()
    with raw_mode(slave, enabled=True):
        os.close(master)
        os.dup2(spare := os.open("/dev/null", os.O_RDONLY), slave)
    os.close(spare)
    os.close(slave)


def test_raw_mode_ignores_a_pipe() -> None:
    reading, writing = os.pipe()
    with raw_mode(reading, enabled=True):
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
