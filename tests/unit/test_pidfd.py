"""The pidfd of a process, sent to an engine as runc does."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from hawse.cli.runc import create, execute, run
from hawse.commands.pidfd import FIRST, send
from hawse.errors import HostError
from tests.support.patience import patience


def test_engine_gets_a_pidfd_of_the_process(tmp_path: Path) -> None:
    """The engine accepts the connection after the command has ended."""
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener, subprocess.Popen(["sleep", "100"]) as process:
        listener.bind(path)
        listener.listen()
        send(path, process.pid, FIRST)
        connection, _ = listener.accept()
        with connection:
            text, [fd], _, _ = socket.recv_fds(connection, 64, 1)
        try:
            assert text == b"standard"
            signal.pidfd_send_signal(fd, signal.SIGKILL)
        finally:
            os.close(fd)
        assert process.wait(patience(3)) == -signal.SIGKILL


def test_nothing_is_sent_without_the_option() -> None:
    send(None, os.getpid(), FIRST)


def test_socket_without_a_listener_is_named(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with pytest.raises(HostError, match=f"^cannot send the pidfd to the socket {path}: No such file or directory$"):
        send(path, os.getpid(), FIRST)


@pytest.mark.parametrize("verb", [create, run, execute])
@pytest.mark.parametrize("words", [["--pidfd-socket", "/s"], ["--pidfd-socket=/s"]])
def test_verbs_that_start_a_process_have_the_option(verb: object, words: list[str]) -> None:
    parser = argparse.ArgumentParser()
    verb.configure(parser)  # type: ignore[attr-defined]
    assert parser.parse_args([*words, "c1"]).pidfd_socket == "/s"
    assert parser.parse_args(["c1"]).pidfd_socket is None
