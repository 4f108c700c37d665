"""The moment between `crun start` and the execution of the program: signals, and hooks in the container."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from hawse.agent.container import container as module
from hawse.agent.container import handlers
from hawse.agent.container.container import Container
from hawse.agent.container.process import Process
from hawse.agent.system import unix_sockets
from hawse.errors import VmError
from hawse.monitor import sandbox
from tests.support.patience import patience, wait_until


class FakeReaper:
    """Records the program that the process executes each time that its pid is held, as for a signal."""

    def __init__(self) -> None:
        self.held: list[str] = []

    @contextmanager
    def hold(self, pid: int, **_since: float) -> Iterator[bool]:
        self.held.append(os.path.basename(os.readlink(f"/proc/{pid}/exe")))
        yield True


class FakeCrun:
    """Returns at once, as crun does, which does not wait for the program."""

    def __init__(self, directory: str, reaper: FakeReaper) -> None:
        self.directory, self.reaper = directory, reaper
        self.started = threading.Event()

    def start(self, _name: str) -> None:
        self.started.set()


class Started:
    """A container whose first process is a shell, as if in a hook, and then executes sleep(1)."""

    def __init__(self, directory: Path) -> None:
        self.reaper = FakeReaper()
        self.crun = FakeCrun(str(directory), self.reaper)
        self.container = Container("c1", {}, init=1, crun=cast(Any, self.crun))
        self.program = subprocess.Popen(
            ["/bin/sh", "-c", "echo; read line; exec sleep 1000"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.program.stdout is not None
        self.program.stdout.readline()
        self.first = Process(1, cast(Any, None), cast(Any, self.reaper))
        self.first.pid = self.program.pid
        self.container.processes[1] = self.first

    def execute(self) -> None:
        assert self.program.stdin is not None
        self.program.stdin.write(b"\n")
        self.program.stdin.flush()

    def executes(self) -> str:
        return os.path.basename(os.readlink(f"/proc/{self.program.pid}/exe"))

    @contextmanager
    def starting(self) -> Iterator[threading.Thread]:
        thread = threading.Thread(target=self.container.start)
        thread.start()
        assert self.crun.started.wait(patience(5))
        yield thread
        thread.join(patience(5))
        assert not thread.is_alive()


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Started]:
    started = Started(tmp_path)
    yield started
    started.program.kill()
    started.program.communicate()


def test_signal_during_a_start_reaches_the_program(started: Started) -> None:
    """For the host the container is running already. Otherwise the signal would end a hook, or be lost."""
    with started.starting():
        kill = threading.Thread(target=started.container.signal, args=(started.first, signal.SIGTERM))
        kill.start()
        time.sleep(0.1)  # without the wait it would have been sent by now
        assert started.reaper.held == []
        started.execute()
        kill.join(patience(5))
    assert started.reaper.held == ["sleep"]
    assert started.program.wait(patience(5)) == -signal.SIGTERM


@pytest.mark.parametrize("number", handlers.NEVER_LOST)
def test_signal_that_needs_no_handler_does_not_wait_for_the_program(started: Started, number: int) -> None:
    with started.starting():
        shell = started.executes()
        started.container.signal(started.first, number)
        assert started.reaper.held == [shell]
        started.program.send_signal(signal.SIGCONT)
        if number != signal.SIGKILL:
            started.execute()
        else:
            started.program.wait(patience(5))
            started.first.pid = 0  # as the reaper does


def test_start_returns_when_the_program_is_executed(started: Started) -> None:
    with started.starting() as thread:
        time.sleep(0.1)
        assert thread.is_alive()
        assert not started.container.started
        started.execute()
    assert started.container.started
    assert started.executes() == "sleep"


def test_start_waits_a_limited_time_for_hooks_in_the_container(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    """runc does not wait for hooks either. The container then counts as started: it can be signalled before its program
    runs."""
    monkeypatch.setattr(module, "_EXECUTE_SECONDS", 0.2)
    began = time.monotonic()
    with started.starting():
        pass
    assert time.monotonic() - began >= 0.2
    assert started.container.started
    assert started.executes() != "sleep"
    started.execute()
    wait_until(lambda: started.executes() == "sleep")
    started.container.signal(started.first, signal.SIGTERM)
    assert started.program.wait(patience(5)) == -signal.SIGTERM


def test_host_waits_longer_for_a_start_than_the_agent_for_the_program() -> None:
    assert module._EXECUTE_SECONDS + 10 < sandbox._LEAST_CALL_SECONDS


def test_failed_start_does_not_delay_signals(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_name: str) -> None:
        raise VmError("crun: no")

    monkeypatch.setattr(started.crun, "start", fail)
    with pytest.raises(VmError, match="crun: no"):
        started.container.start()
    began = time.monotonic()
    started.container.signal(started.first, signal.SIGTERM)
    assert time.monotonic() - began < handlers.SECONDS
    assert started.program.wait(patience(5)) == -signal.SIGTERM


def test_sockets_are_bound_to_paths_of_any_length(tmp_path: Path) -> None:
    directory = tmp_path / ("c" * 255)
    directory.mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        unix_sockets.bind(listening, f"{directory}/notify.sock")
        assert (directory / "notify.sock").is_socket()
