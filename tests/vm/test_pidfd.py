"""--pidfd-socket of runc: the engine gets a pidfd of the process, which never refers to another process, unlike a
pid."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.bundles import make_bundle
from tests.support.patience import patience
from tests.support.runtime import Runtime

pytestmark = pytest.mark.vm

FOREVER = ["/bin/sleep", "1000"]


@contextmanager
def listening(path: str) -> Iterator[socket.socket]:
    """A listening socket of an engine."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
        yield listener


def received(listener: socket.socket) -> tuple[str, int]:
    """The message of the runtime: runc's word for the kind of process, and the descriptor."""
    connection, _ = listener.accept()
    with connection:
        text, [fd], _, _ = socket.recv_fds(connection, 64, 1)
    return text.decode(), fd


def pid_of(fd: int) -> int:
    """The process behind a pidfd (proc(5), fdinfo)."""
    with open(f"/proc/self/fdinfo/{fd}") as file:
        return int(next(line for line in file if line.startswith("Pid:")).split()[1])


def test_engine_gets_pidfds_of_a_container_and_of_an_exec(runtime: Runtime, tmp_path: Path) -> None:
    bundle = str(tmp_path / "bundle")
    make_bundle(bundle, FOREVER)
    null = subprocess.DEVNULL
    with listening(str(tmp_path / "first")) as first, listening(str(tmp_path / "further")) as further:
        words = ["--pidfd-socket", str(tmp_path / "first"), "--pid-file", str(tmp_path / "pid"), "c1"]
        running = runtime.start("create", "--bundle", bundle, *words, stdin=null, stdout=null, stderr=null)
        assert running.wait(patience(30)) == 0
        kind, container = received(first)
        assert (kind, pid_of(container)) == ("standard", int((tmp_path / "pid").read_text()))
        assert runtime("start", "c1").code == 0
        words = [
            "--detach",
            "--pidfd-socket",
            str(tmp_path / "further"),
            "--pid-file",
            str(tmp_path / "exec.pid"),
            "c1",
        ]
        running = runtime.start("exec", *words, *FOREVER, stdin=null, stdout=null, stderr=null)
        assert running.wait(patience(10)) == 0
        kind, process = received(further)
        assert (kind, pid_of(process)) == ("setns", int((tmp_path / "exec.pid").read_text()))
    for fd in (process, container):
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        assert select.select([fd], [], [], 30)[0], "it goes on"
        os.close(fd)


def test_failed_send_leaves_nothing(runtime: Runtime, tmp_path: Path) -> None:
    bundle = str(tmp_path / "bundle")
    make_bundle(bundle, FOREVER)
    nowhere = ["--pidfd-socket", str(tmp_path / "nowhere")]
    result = runtime("create", "--bundle", bundle, *nowhere, "c1")
    assert result.code == 1
    assert f"cannot send the pidfd to the socket {tmp_path}/nowhere: No such file or directory" in result.errors
    assert not os.path.exists(f"{runtime.root}/c1")
    runtime.run_detached(bundle, "c1")
    result = runtime("exec", *nowhere, "c1", "/bin/sleep", "1001")
    assert result.code == 255
    assert "sleep 1001" not in runtime("exec", "c1", "/bin/ps", "-o", "args").output
