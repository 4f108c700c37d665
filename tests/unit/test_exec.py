"""`exec`: the process that is asked for, the proxy that stands for it, and what is undone when it cannot be made."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hawse.errors import CommandError, VmError
from hawse.state.store import CREATED, PAUSED, RUNNING, STOPPED, Store
from tests.support import bundles
from tests.support.command import Command
from tests.support.fake_monitor import FakeMonitor
from tests.support.patience import patience
from tests.support.proxies import Attached
from tests.support.runtime import Runtime, handing_on


@pytest.fixture
def hawse(tmp_path: Path) -> Command:
    return Command(str(tmp_path))


@pytest.fixture
def bundle(tmp_path: Path) -> str:
    (tmp_path / "bundle/rootfs").mkdir(parents=True)
    bundles.write(f"{tmp_path}/bundle", bundles.specification(["sh"], cwd="/srv"))
    return f"{tmp_path}/bundle"


class Ending:
    """Run the process in a thread: it exits at once with the code; ``params`` are those of its proxy's call."""

    def __init__(self, monitor: FakeMonitor, code: int) -> None:
        self._monitor = monitor
        self._code = code
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with Attached(self._monitor) as process:
            self.params = process.params
            process.exit(self._code)

    def join(self) -> dict[str, Any]:
        self._thread.join(patience(10))
        return self.params


@pytest.fixture
def monitor(hawse: Command, bundle: str) -> Iterator[FakeMonitor]:
    with FakeMonitor(hawse.store("c1"), bundle=bundle) as monitor:
        yield monitor


def await_proxy(monitor: FakeMonitor, answer: object = None) -> list[Attached]:
    """Answer `exec` once the process's proxy has connected, as the real monitor does. The list gets the proxy."""
    attached: list[Attached] = []

    def execute(_params: object) -> object:
        attached.append(Attached(monitor))
        return answer

    monitor.answers["exec"] = execute
    return attached


def asked(monitor: FakeMonitor) -> dict[str, Any]:
    """The process of the only call."""
    [(method, params)] = monitor.calls
    assert method == "exec"
    process: dict[str, Any] = params["process"]
    return process


def test_foreground_has_the_code_of_the_process(hawse: Command, monitor: FakeMonitor) -> None:
    ending = Ending(monitor, 5)
    done = hawse("exec", "-e", "A=1", "-u", "7:8", "-g", "9", "--no-new-privs", "c1", "id", "-u")
    assert (done.code, done.errors) == (5, "")
    process = asked(monitor)
    assert process["args"] == ["id", "-u"]
    assert (process["cwd"], process["env"][-1], process["terminal"]) == ("/srv", "A=1", False)
    assert process["user"] == {"uid": 7, "gid": 8, "additionalGids": [9]}
    assert process["noNewPrivileges"] is True
    assert ending.join() == {"key": f"c1/{monitor.calls[0][1]['key']}", "descriptors": []}


@pytest.mark.parametrize(
    ("words", "args"), [(["--", "ls", "--", "x"], ["ls", "--", "x"]), (["ls", "--", "x"], ["ls", "--", "x"])]
)
def test_two_dashes_end_the_options(hawse: Command, monitor: FakeMonitor, words: list[str], args: list[str]) -> None:
    ending = Ending(monitor, 0)
    assert hawse("exec", "--cwd", "/tmp", "c1", *words).code == 0
    ending.join()
    assert (asked(monitor)["args"], asked(monitor)["cwd"]) == (args, "/tmp")


@pytest.fixture
def terminal() -> Iterator[None]:
    """A terminal as the stdin of this process."""
    master, slave = os.openpty()
    before = os.dup(0)
    os.dup2(slave, 0)
    yield
    os.dup2(before, 0)
    for fd in (before, master, slave):
        os.close(fd)


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("tty", [False, True])
def test_process_can_come_from_a_file(hawse: Command, monitor: FakeMonitor, tmp_path: Path, tty: bool) -> None:
    process = {"args": ["true"], "cwd": "/", "user": {"uid": 1, "gid": 2}, "env": ["B=2"]}
    (tmp_path / "process.json").write_text(json.dumps(process))
    ending = Ending(monitor, 0)
    assert hawse("exec", *(["-t"] if tty else []), "--process", str(tmp_path / "process.json"), "c1").code == 0
    ending.join()
    assert asked(monitor) == process | ({"terminal": True} if tty else {})


def test_detached_process_stays_and_its_pid_is_the_proxys(hawse: Command, monitor: FakeMonitor, tmp_path: Path) -> None:
    done = hawse("exec", "--detach", "--pid-file", f"{tmp_path}/pid", "c1", "sleep", "9")
    assert (done.code, done.output) == (0, "")
    pid = int((tmp_path / "pid").read_text())
    with Attached(monitor) as process:
        assert Path(f"/proc/{pid}/comm").read_text() == "hawse-proxy\n"
        assert Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"hawse[c1]: sleep 9\0")
        process.exit(4)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 4


@pytest.mark.parametrize("words", [["--pid-file", "/none/pid"], ["--pidfd-socket", "/none/socket"]])
def test_process_is_ended_if_its_pid_cannot_be_written(hawse: Command, monitor: FakeMonitor, words: list[str]) -> None:
    proxies = await_proxy(monitor)
    done = hawse("exec", *words, "c1", "true")
    assert done.code == 255
    assert "/none/" in done.errors
    with proxies[0] as process:
        process.await_end()  # the proxy has ended, and the process with it


@pytest.mark.parametrize(
    ("failure", "code"),
    [(VmError("the guest does not answer"), 255), (CommandError("true: not found"), 127),
     (CommandError("true: permission denied", exit_code=126), 126)],
)  # fmt: skip
def test_exit_code_of_a_program_that_cannot_be_executed(
    hawse: Command, monitor: FakeMonitor, failure: Exception, code: int
) -> None:
    proxies = await_proxy(monitor, failure)
    done = hawse("exec", "c1", "true")
    assert done.code == code
    with proxies[0] as process:
        process.await_end()


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (PAUSED, "cannot exec in a paused container: c1 [`hawse resume` it first]"),
        (CREATED, "cannot exec in a container that is not running: c1 is created"),
        (STOPPED, "cannot exec in a container that is not running: c1 is stopped"),
    ],
)
def test_exec_needs_a_running_container(hawse: Command, monitor: FakeMonitor, status: str, words: str) -> None:
    monitor.change(status=status)
    done = hawse("exec", "c1", "true")
    assert (done.code, done.errors) == (255, f"hawse: {words}\n")
    assert monitor.calls == []
    assert monitor.proxies.empty()


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["c1"], "exec: no command given"),
        (["c1", "--"], "exec: no command given"),
        (["--cgroup", "/x", "c1", "true"], "exec: --cgroup /x: the process runs in the container's cgroup"),
        (["--ignore-paused", "c1", "true"], "exec: --ignore-paused: a paused container cannot start a process"),
        (["-t", "-d", "c1", "true"], "cannot allocate tty if runc will detach without setting console socket"),
        (["--console-socket", "/s", "c1", "true"], "cannot use console socket if runc will not detach or allocate"),
        (["--preserve-fds", "-1", "c1", "true"], "--preserve-fds -1: negative number"),
        (["--user", "root", "c1", "true"], "exec: --user 'root' is not UID"),
        (["--process", "/none/process", "c1"], "/none/process: no such file or directory"),
    ],
)
def test_invalid_options_start_nothing(hawse: Command, monitor: FakeMonitor, words: list[str], error: str) -> None:
    done = hawse("exec", *words)
    assert done.code == 255
    assert done.errors.startswith(f"hawse: {error}")
    assert monitor.calls == []
    assert monitor.proxies.empty()


def test_terminal_goes_to_the_console_socket(hawse: Command, monitor: FakeMonitor, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
        done = hawse("exec", "-td", "--console-socket", path, "--pid-file", f"{tmp_path}/pid", "c1", "sh")
        assert (done.code, done.errors) == (0, "")
        connection, _ = listener.accept()
        with connection:
            _, [master], _, _ = socket.recv_fds(connection, 256, 1)
    assert asked(monitor)["terminal"] is True
    with Attached(monitor) as process:
        process.write(1, b"prompt")
        assert os.read(master, 99) == b"prompt"
        process.exit(0)
        os.waitpid(int((tmp_path / "pid").read_text()), 0)
    os.close(master)


def test_file_descriptors_are_preserved(tmp_path: Path, bundle: str) -> None:
    """The numbers begin at 3. The command itself closes them, so that its caller sees when the process closes them."""
    hawse = Runtime(str(tmp_path))
    ours, theirs = socket.socketpair()
    reading, writing = os.pipe()
    with FakeMonitor(Store(hawse.root, "c1"), bundle=bundle, status=RUNNING) as monitor, ours:
        words = hawse.argv("exec", "--preserve-fds", "2", "c1", "true")
        null = subprocess.DEVNULL
        with handing_on(words, theirs.fileno(), writing, stdin=null, stdout=subprocess.PIPE) as command:
            theirs.close()
            os.close(writing)
            with Attached(monitor) as process:
                assert process.params["descriptors"] == ["both", "out"]
                ours.sendall(b"question")
                assert next(data for data in iter(process.next_data, None) if data[0] == 3) == (3, b"question")
                process.write(3, b"answer")
                assert ours.recv(9) == b"answer"
                process.close(3)
                assert ours.recv(9) == b""
                process.write(4, b"log")
                process.close(4)
                assert os.read(reading, 9) == b"log"
                assert os.read(reading, 9) == b""
                process.write(1, b"output")
                process.exit(9)
            assert command.communicate(timeout=patience(10))[0] == b"output"
    os.close(reading)
    assert command.returncode == 9
