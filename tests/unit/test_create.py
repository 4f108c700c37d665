"""The last steps of `create` and `run`: the pid file, the log, stderr, and the undoing of a failed creation."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hawse.commands import spawn
from hawse.commands.create import undo_creation
from hawse.commands.host_process import write_pid_file
from hawse.errors import HostError, VmError
from hawse.log import Log
from hawse.state.store import Store

NOTES = [("warning", "something to know"), ("debug", "something more")]


def test_pid_file_is_written_atomically(tmp_path: Path) -> None:
    """Engines read it as soon as it exists. A rename puts the new file in place; a program that has opened the old one
    keeps it."""
    path = tmp_path / "pid"
    path.write_text("1234567")
    with open(path) as old:
        write_pid_file(str(path), 42)
        assert old.read() == "1234567"
    assert path.read_text() == "42"
    assert os.listdir(tmp_path) == ["pid"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o007, 0o660)])
def test_pid_file_has_the_mode_of_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    """As runc creates it (utils_linux.go, createPidFile())."""
    before = os.umask(umask)
    try:
        write_pid_file(str(tmp_path / "pid"), 42)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "pid").stat().st_mode) == mode


def test_pid_file_that_cannot_be_written_is_reported_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"cannot write the pid file .*/none/pid: No such file or directory"):
        write_pid_file(str(tmp_path / "none" / "pid"), 42)


@pytest.mark.parametrize("path", ["/dev/full", "/none/log"])
@pytest.mark.parametrize("form", ["text", "json"])
def test_log_that_cannot_be_written_is_not_an_error(path: str, form: str) -> None:
    Log(path, form=form, debug=True).tell(NOTES)


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("stderr", ["closed", "full"])
def test_stderr_without_a_reader_is_not_an_error(form: str, stderr: str) -> None:
    """Not even at the exit, when Python flushes stderr once more and would make the exit code 120."""
    program = f"from hawse.log import Log; Log(form={form!r}).tell({NOTES!r})"
    if stderr == "closed":
        reading, writing = os.pipe()
        os.close(reading)
    else:
        writing = os.open("/dev/full", os.O_WRONLY)
    try:
        assert subprocess.run([sys.executable, "-I", "-c", program], stderr=writing, check=False).returncode == 0
    finally:
        os.close(writing)


def test_monitor_that_is_stuck_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else an interrupted `create` would wait for it for ever."""
    store = Store(str(tmp_path), "c1")
    store.make()
    monkeypatch.setattr(spawn, "_MONITOR", "import time; time.sleep(1000)")
    monkeypatch.setattr(spawn, "_UNDO_SECONDS", 0.2)
    monitor = spawn.MonitorProcess(store)
    monitor.send(b"a plan")
    monitor.abort()
    assert monitor._process.returncode == -signal.SIGKILL


class Stuck(Store):
    """A state directory that cannot be removed."""

    def remove(self) -> None:
        raise HostError("its directory stays", hint="remove it")


@pytest.mark.parametrize(("hint", "together"), [("", "remove it"), ("see the log", "see the log; remove it")])
def test_failure_of_the_undoing_is_added_to_the_error(tmp_path: Path, hint: str, together: str) -> None:
    store = Stuck(str(tmp_path), "c1")
    store.make()
    error = VmError("no machine", hint=hint)
    told = undo_creation(store, error, None)
    assert (type(told), told.message, told.hint) == (VmError, "no machine; and then its directory stays", together)
    assert (error.message, error.hint) == ("no machine", hint)


def test_cgroup_that_cannot_be_removed_is_added_to_the_error(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "state"), "c1")
    store.make()
    (tmp_path / "cgroup/other").mkdir(parents=True)
    (Path(store.path) / "cgroups").write_text(f"{tmp_path}/cgroup\n")
    error = VmError("no machine")
    told = undo_creation(store, error, None)
    assert told.message == f"no machine; and then the cgroup {tmp_path}/cgroup cannot be removed: Directory not empty"
    assert not os.path.exists(store.path)
