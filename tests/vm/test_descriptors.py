"""--preserve-fds: processes in the VM read and write file descriptors of the caller, up to their end."""

from __future__ import annotations

import io
import os
import pty
import select
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.bundles import make_bundle
from tests.support.patience import patience
from tests.support.processes import holders
from tests.support.running import running_container
from tests.support.runtime import Runtime, handing_on

pytestmark = pytest.mark.vm

#: The time limit of a program, passed to :func:`patience`.
SECONDS = 25
LARGE = 1 << 20
Script = Callable[[str], str]


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """A function that creates a bundle whose process runs a script, and returns its path."""

    def make(text: str, **process: Any) -> str:
        bundle = str(tmp_path / "bundle")
        make_bundle(bundle, ["/bin/sh", "-c", text], **process)
        return bundle

    return make


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    """A running container for the processes of the tests."""
    directory = str(tmp_path_factory.mktemp("descriptors"))
    make_bundle(f"{directory}/bundle", ["/bin/sleep", "100000"])
    with running_container(directory, f"{directory}/bundle", "c1") as runtime:
        yield runtime


def _file(fd: int, mode: str) -> io.FileIO:
    return io.FileIO(fd, mode)


class Pipe:
    """A pipe whose ends are closed with their objects."""

    def __init__(self) -> None:
        self.reading, self.writing = map(_file, os.pipe(), ("rb", "wb"))

    def __enter__(self) -> Pipe:
        return self

    def __exit__(self, *_: object) -> None:
        self.reading.close()
        self.writing.close()


def begin(runtime: Runtime, verb: str, *words: str, hand: list[int], **options: Any) -> subprocess.Popen[bytes]:
    """Start a command that preserves all of these descriptors."""
    argv = runtime.argv(verb, "--preserve-fds", str(len(hand)), *words)
    null = subprocess.DEVNULL
    return handing_on(argv, *hand, **({"stdin": null, "stdout": subprocess.PIPE, "stderr": null} | options))


def said(process: subprocess.Popen[bytes]) -> tuple[int, bytes]:
    """Wait for a command; returns its exit code and its output."""
    output, _ = process.communicate(timeout=patience(SECONDS))
    return process.returncode, output


def until_end(fd: int) -> bytes:
    """Read a descriptor to its end."""
    data = b""
    while True:
        assert select.select([fd], [], [], patience(SECONDS))[0], f"no end after {len(data)} bytes"
        piece = os.read(fd, 65536)
        if not piece:
            return data
        data += piece


def test_pipes_carry_data_and_their_end(runtime: Runtime, script: Script, tmp_path: Path) -> None:
    """The data exceeds the window of the link. The reader sees the end while the process continues."""
    bundle = script("cat <&3 >&4; exec 4>&-; read x; echo $x; ls /proc/self/fd | wc -l; exit 5")
    (tmp_path / "content").write_bytes(content := os.urandom(LARGE))
    with Pipe() as to, Pipe() as back, Pipe() as stdin:
        hand = [to.reading.fileno(), back.writing.fileno()]
        process = begin(runtime, "run", "--bundle", bundle, "c1", hand=hand, stdin=stdin.reading)
        to.reading.close()
        back.writing.close()
        writer = subprocess.Popen(["cat", str(tmp_path / "content")], stdout=to.writing)
        to.writing.close()
        assert until_end(back.reading.fileno()) == content
        assert writer.wait(patience(SECONDS)) == 0
        assert process.poll() is None
        stdin.writing.write(b"done\n")
        # Stdio, descriptor 3, and the descriptor with which ls reads the directory.
        assert said(process) == (5, b"done\n5\n")


def test_files_are_read_and_written_in_order(running: Runtime, tmp_path: Path) -> None:
    (tmp_path / "read").write_bytes(b"one\ntwo\n")
    (tmp_path / "written").write_bytes(b"before\n")
    with open(tmp_path / "read", "rb") as read, open(tmp_path / "written", "ab") as written:
        argv = ["c1", "/bin/sh", "-c", "read x <&3; cat <&3 >&4; echo $x >&4; echo gone >&5"]
        null = os.open("/dev/null", os.O_RDWR)
        process = begin(running, "exec", *argv, hand=[read.fileno(), written.fileno(), null])
        os.close(null)
        assert said(process) == (0, b"")
    assert (tmp_path / "written").read_bytes() == b"before\ntwo\none\n"


def test_socket_carries_both_directions_and_their_ends(running: Runtime) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)  # the proxy shares the open file description
        theirs.setblocking(False)
        process = begin(
            running, "exec", "c1", "/bin/sh", "-c", "cat <&3; echo to you >&3; read x; echo $x >&3",
            hand=[theirs.fileno()], stdin=subprocess.PIPE,
        )  # fmt: skip
        theirs.close()
        ours.send(b"to it\n")
        ours.shutdown(socket.SHUT_WR)
        answer = b""
        while not answer.endswith(b"\n"):
            assert select.select([ours], [], [], patience(SECONDS))[0]
            answer += ours.recv(100)
        assert answer == b"to you\n"
        output, _ = process.communicate(b"last\n", timeout=patience(SECONDS))
        assert (process.returncode, output) == (0, b"to it\n")
        assert until_end(ours.fileno()) == b"last\n"


def test_process_ends_its_direction_of_a_socket_first(running: Runtime) -> None:
    """A shell can close only the whole socket. Data that still arrives for it is dropped."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        argv = ["c1", "/bin/sh", "-c", "echo bye >&3; exec 3>&-; read x; echo $x"]
        process = begin(running, "exec", *argv, hand=[theirs.fileno()], stdin=subprocess.PIPE)
        theirs.close()
        assert until_end(ours.fileno()) == b"bye\n"
        ours.sendall(bytes(LARGE))  # more than all buffers hold
        output, _ = process.communicate(b"still here\n", timeout=patience(SECONDS))
        assert (process.returncode, output) == (0, b"still here\n")


def test_container_with_a_terminal_has_descriptors(running: Runtime) -> None:
    master, slave = pty.openpty()
    with Pipe() as back:
        argv = ["--tty", "c1", "/bin/sh", "-c", "tty >&3"]
        process = begin(
            running, "exec", *argv, hand=[back.writing.fileno()], stdin=slave, stdout=slave, stderr=slave
        )  # fmt: skip
        back.writing.close()
        assert until_end(back.reading.fileno()).startswith(b"/dev/pts/")
        assert process.wait(patience(SECONDS)) == 0
    os.close(master)
    os.close(slave)


def test_container_has_descriptors_from_its_start_to_its_end(runtime: Runtime, script: Script) -> None:
    """Neither the monitor nor the command keeps them open on the host."""
    bundle = script("echo started >&3; sleep 1000")
    with Pipe() as back:
        null = subprocess.DEVNULL
        creation = begin(runtime, "create", "--bundle", bundle, "c1", hand=[back.writing.fileno()], stdout=null)
        back.writing.close()
        assert creation.wait(patience(SECONDS)) == 0
        assert not select.select([back.reading], [], [], 0)[0]
        assert runtime("start", "c1").code == 0
        assert select.select([back.reading], [], [], patience(SECONDS))[0]
        assert back.reading.read(100) == b"started\n"
        pipe = os.readlink(f"/proc/self/fd/{back.reading.fileno()}")
        assert set(holders(lambda target: target == pipe)) - {os.getpid()} == {runtime.state("c1")["pid"]}
        assert runtime("kill", "c1", "KILL").code == 0
        assert until_end(back.reading.fileno()) == b""


def test_connection_that_systemd_has_accepted(runtime: Runtime, script: Script) -> None:
    """With Accept=yes a unit gets a connection, which is a stream. LISTEN_PID must be the pid of the runtime."""
    bundle = script("echo $LISTEN_FDS of $LISTEN_PID: $$ >&3; cat <&4 >&3")
    ours, theirs = socket.socketpair()
    with ours, theirs, Pipe() as more:
        program = 'export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@"'
        argv = ["/bin/sh", "-c", program, "sh", *runtime.argv("run", "--preserve-fds", "1", "--bundle", bundle, "c1")]
        process = handing_on(argv, theirs.fileno(), more.reading.fileno(), stdin=subprocess.DEVNULL)
        theirs.close()
        more.writing.write(b"and more\n")
        more.writing.close()
        assert until_end(ours.fileno()) == b"1 of 1: 1\nand more\n"
        assert process.wait(patience(SECONDS)) == 0


@pytest.mark.parametrize("verb", ["create", "run"])
def test_descriptor_that_is_not_a_stream_is_refused(runtime: Runtime, script: Script, verb: str) -> None:
    bundle = script("true")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = begin(
            runtime, verb, "--bundle", bundle, "c1", hand=[listener.fileno()], stderr=subprocess.STDOUT
        )  # fmt: skip
    words = b"hawse: --preserve-fds: descriptor 3 cannot be passed into a VM: it is a listening socket ["
    code, output = said(process)
    assert (code, output[: len(words)]) == (1, words)
    assert not os.path.exists(f"{runtime.root}/c1")


@pytest.mark.parametrize(("count", "words"), [("1", "descriptor 3 is not open"), ("62", "at most 61 descriptors")])
def test_count_without_open_descriptors_is_refused(runtime: Runtime, script: Script, count: str, words: str) -> None:
    result = runtime("run", "--preserve-fds", count, "--bundle", script("true"), "c1")
    assert result.code == 1
    assert words in result.errors
    assert not os.path.exists(f"{runtime.root}/c1")
