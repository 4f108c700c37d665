"""The process that an engine sees: what it passes on, whatever the monitor does meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import hawse
from hawse.container.proxy import LOST, _write
from hawse.errors import LinkError
from hawse.link.blocking import Incoming, Port
from hawse.link.flow import WINDOW
from hawse.link.frames import MAX_DATA


class _Gone(Port):
    """The monitor's, when all has been told: the end arrives just after credit was worth a frame."""

    source: Incoming

    def send(self, frame: bytes) -> None:  # noqa: ARG002
        self.source.end()
        raise LinkError("link: the peer is gone")


def test_what_has_arrived_is_passed_on_although_the_monitor_is_gone(tmp_path: Path) -> None:
    port = _Gone(-1)
    port.source = Incoming(port, 1)
    pieces = [bytes([number]) * MAX_DATA for number in range(WINDOW // MAX_DATA)]
    for piece in pieces:
        port.source.push(piece)
    output = tmp_path / "output"
    _write(port.source, os.open(output, os.O_WRONLY | os.O_CREAT))
    assert output.read_bytes() == b"".join(pieces)


def test_where_the_monitor_has_died_it_ends_without_a_word(tmp_path: Path) -> None:
    """Its stderr is the container's; what the command says of the monitor is enough."""
    packages = os.path.dirname(os.path.dirname(os.path.abspath(hawse.__file__)))
    program = f"import sys; sys.path.insert(0, {packages!r}); from hawse.container.proxy import main; main()"
    fd = os.open(tmp_path, os.O_RDONLY)
    words = [sys.executable, "-I", "-S", "-c", program, str(fd), "c1/key", "pipes", "-1", "hawse[c1]: true"]
    done = subprocess.run(words, pass_fds=(fd,), capture_output=True, text=True, check=False)
    os.close(fd)
    assert (done.returncode, done.stdout, done.stderr) == (LOST, "", "")
