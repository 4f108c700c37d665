"""The proxy's threads: what they forward, whatever the monitor does."""

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
    """A port whose monitor has sent everything and ended: a write of credit fails."""

    source: Incoming

    def send(self, frame: bytes) -> None:  # noqa: ARG002
        self.source.end()
        raise LinkError("link: the peer has closed the link")


def test_received_data_is_forwarded_after_the_end_of_the_monitor(tmp_path: Path) -> None:
    port = _Gone(-1)
    port.source = Incoming(port, 1)
    pieces = [bytes([number]) * MAX_DATA for number in range(WINDOW // MAX_DATA)]
    for piece in pieces:
        port.source.push(piece)
    output = tmp_path / "output"
    _write(port.source, os.open(output, os.O_WRONLY | os.O_CREAT))
    assert output.read_bytes() == b"".join(pieces)


def test_end_of_one_direction_does_not_end_the_other() -> None:
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


def test_proxy_waits_for_data_on_a_nonblocking_descriptor() -> None:
    """Another process has made the descriptor non-blocking: a read without data is not the end of file."""
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


def test_proxy_without_a_monitor_exits_without_output(tmp_path: Path) -> None:
    """Its stderr is the container's, and the command reports the monitor's death."""
    packages = os.path.dirname(os.path.dirname(os.path.abspath(hawse.__file__)))
    program = f"import sys; sys.path.insert(0, {packages!r}); from hawse.proxy.main import main; main()"
    fd = os.open(tmp_path, os.O_RDONLY)
    words = [sys.executable, "-I", "-S", "-c", program, str(fd), "c1/key", "-1", "-1", "", "hawse[c1]: true"]
    done = subprocess.run(words, pass_fds=(fd,), capture_output=True, text=True, check=False)
    os.close(fd)
    assert (done.returncode, done.stdout, done.stderr) == (LOST, "", "")
