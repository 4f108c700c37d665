"""The process that an engine sees: what it passes on, whatever the monitor does meanwhile."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import hawse
from hawse.errors import LinkError
from hawse.link.blocking import Incoming, Outgoing, Port
from hawse.link.flow import WINDOW
from hawse.link.frames import DATA, EOF, MAX_DATA, encode
from hawse.proxy.main import LOST, _read, _write


class _Gone(Port):
    """The monitor's, when all has been told: the end arrives just after credit was worth a frame."""

    source: Incoming

    def send(self, frame: bytes) -> None:  # noqa: ARG002
        self.source.end()
        raise LinkError("link: the peer has closed the link")


def test_what_has_arrived_is_passed_on_although_the_monitor_is_gone(tmp_path: Path) -> None:
    port = _Gone(-1)
    port.source = Incoming(port, 1)
    pieces = [bytes([number]) * MAX_DATA for number in range(WINDOW // MAX_DATA)]
    for piece in pieces:
        port.source.push(piece)
    output = tmp_path / "output"
    _write(port.source, os.open(output, os.O_WRONLY | os.O_CREAT))
    assert output.read_bytes() == b"".join(pieces)


def test_the_end_of_one_direction_leaves_the_other() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        source = Incoming(Port(-1), 1)
        source.push(b"all")
        source.end()
        _write(source, theirs.fileno(), read_too=True)
        assert ours.recv(9) == b"all"
        assert ours.recv(9) == b""
        ours.send(b"answer")
        assert theirs.recv(9) == b"answer"


def test_what_is_not_there_yet_is_waited_for() -> None:
    """Somebody has made the description non-blocking: nothing to read is no end."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    theirs, ours = os.pipe()
    reader = threading.Thread(target=_read, args=(Outgoing(Port(ours), 1), reading))
    reader.start()
    for word in (b"one", b"two"):
        os.write(writing, word)
        assert os.read(theirs, 100) == encode(1, DATA, word)
    os.close(writing)
    assert os.read(theirs, 100) == encode(1, EOF)
    reader.join()
    for fd in (reading, ours, theirs):
        os.close(fd)


def test_where_the_monitor_has_died_it_ends_without_a_word(tmp_path: Path) -> None:
    """Its stderr is the container's; what the command says of the monitor is enough."""
    packages = os.path.dirname(os.path.dirname(os.path.abspath(hawse.__file__)))
    program = f"import sys; sys.path.insert(0, {packages!r}); from hawse.proxy.main import main; main()"
    fd = os.open(tmp_path, os.O_RDONLY)
    words = [sys.executable, "-I", "-S", "-c", program, str(fd), "c1/key", "-1", "-1", "", "hawse[c1]: true"]
    done = subprocess.run(words, pass_fds=(fd,), capture_output=True, text=True, check=False)
    os.close(fd)
    assert (done.returncode, done.stdout, done.stderr) == (LOST, "", "")
