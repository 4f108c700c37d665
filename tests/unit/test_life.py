"""`create`, `start`, `run` and `delete` with real monitors and proxies, and a fake QEMU without a VM."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hawse.commands.create import create
from hawse.commands.host_process import IoOptions
from hawse.plan.model import SandboxPlan
from hawse.state.store import CREATED, RUNNING, STOPPED
from tests.support.command import Done
from tests.support.patience import wait_until
from tests.support.ready import Sandboxes, make_program
from tests.support.runtime import Runtime


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Sandboxes]:
    with Sandboxes(str(tmp_path)) as sandboxes:
        yield sandboxes


def test_container_from_creation_to_deletion(host: Sandboxes) -> None:
    """created, running, stopped, deleted: the pid in the pid file represents the process all the time."""
    host.program("wait")
    pid_file = f"{host.directory}/pid"
    assert host.hawse("create", "--bundle", host.bundle, "--pid-file", pid_file, "c1") == Done(0, "", "")
    pid = int(Path(pid_file).read_text())
    state = host.state("c1")
    assert (state["status"], state["pid"], state["bundle"]) == (CREATED, pid, host.bundle)
    taken = host.hawse("create", "--bundle", host.bundle, "c1")
    assert "container with given ID already exists: c1" in taken.errors
    assert host.hawse("start", "c1") == Done(0, "", "")
    assert host.state("c1")["status"] == RUNNING
    assert host.hawse("exec", "c1", "exit", "4").code == 4
    assert host.hawse("kill", "c1", "TERM") == Done(0, "", "")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 143
    wait_until(lambda: host.state("c1")["status"] == STOPPED)
    assert host.hawse("delete", "c1") == Done(0, "", "")
    assert host.names() == []


def test_run_has_the_programs_output_and_code(host: Sandboxes) -> None:
    host.program("exit", "7")
    hawse = Runtime(host.directory)
    hawse.configure(host.text)
    done = hawse("run", "--bundle", host.bundle, "c1")
    assert (done.code, done.output, done.errors) == (7, "hello\n", "")
    assert host.names() == []


def test_program_that_exits_with_255_is_no_failure(host: Sandboxes) -> None:
    """255 is also the exit code of a lost sandbox, whose reason is on record."""
    host.program("exit", "255")
    assert host.hawse("run", "--keep", "--bundle", host.bundle, "c1") == Done(255, "", "")
    assert host.names() == ["c1"]


def test_run_reports_why_the_vm_ended(host: Sandboxes) -> None:
    host.program("die")
    done = host.hawse("run", "--bundle", host.bundle, "c1")
    assert done.code == 1
    assert "QEMU" in done.errors
    assert "  | qemu: out of order" in done.errors
    assert host.names() == []


def test_detached_run_leaves_the_container(host: Sandboxes) -> None:
    host.program("wait")
    done = host.hawse("run", "--detach", "--bundle", host.bundle, "--pid-file", f"{host.directory}/pid", "c1")
    assert done == Done(0, "", "")
    assert host.state("c1")["status"] == RUNNING
    assert host.state("c1")["pid"] == int(Path(f"{host.directory}/pid").read_text())


@pytest.mark.parametrize(("verb", "option"), [("create", "--pid-file"), ("run", "--pidfd-socket")])
def test_container_whose_pid_cannot_be_reported_is_deleted(host: Sandboxes, verb: str, option: str) -> None:
    host.program("wait")
    done = host.hawse(verb, "--bundle", host.bundle, option, "/none/file", "c1")
    assert done.code == 1
    assert "/none/file" in done.errors
    assert host.names() == []


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--bundle", "/none"], "bundle /none: no such directory"),
        (["--console-socket", "/s"], "cannot use console socket if runc will not detach or allocate tty"),
        (["--preserve-fds", "-1"], "--preserve-fds -1: negative number"),
        (["--timeline", "/none/trace.json"], "the timeline cannot be written: /none/trace.json"),
        (["--timeline", "/tmp"], "the timeline cannot be written: /tmp"),
    ],
)
def test_creation_that_fails_before_the_vm_leaves_nothing(host: Sandboxes, words: list[str], error: str) -> None:
    done = host.hawse("create", "--bundle", host.bundle, *words, "c1")
    assert done.code == 1
    assert done.errors.startswith(f"hawse: {error}")
    assert host.names() == []


@pytest.mark.parametrize(("options", "refused"), [((), False), (("--systemd-cgroup",), True)])
def test_cgroups_path_is_for_systemd_with_systemd_cgroup(
    host: Sandboxes, options: tuple[str, ...], refused: bool
) -> None:
    host.write(lambda spec: spec["linux"].update({"cgroupsPath": "/plain"}))
    done = host.hawse("create", "--bundle", host.bundle, "--console-socket", "/s", "c1", options=options)
    assert done.code == 1
    assert ("expected cgroupsPath to be of format slice:prefix:name" in done.errors) is refused
    assert ("cannot use console socket" in done.errors) is not refused, "the plan was made"
    assert host.names() == []


def test_interrupted_creation_leaves_nothing(host: Sandboxes) -> None:
    def interrupt() -> SandboxPlan:
        assert host.names() == ["c1"]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        create(host.hawse.store("c1"), interrupt, IoOptions(None, detach=True))
    assert host.names() == []


def test_terminal_needs_a_console_socket(host: Sandboxes) -> None:
    host.program("wait", terminal=True)
    done = host.hawse("create", "--bundle", host.bundle, "c1")
    assert "cannot allocate tty if runc will detach without setting console socket" in done.errors
    assert host.names() == []


@pytest.mark.parametrize(
    ("script", "error", "evidence"),
    [
        ("echo no machine >&2; exit 1", "QEMU ", "  | no machine"),
        ("kill -9 $PPID; sleep 100", "the monitor was killed while it created the sandbox [the memory limit", ""),
        ("kill -6 $PPID; sleep 100", "the monitor died while it created the sandbox", ""),
    ],
)
def test_vm_that_is_not_created_is_reported(host: Sandboxes, script: str, error: str, evidence: str) -> None:
    make_program(host.qemu, f'case $* in *stdio*) cat "$0.json";; *) {script};; esac')
    done = host.hawse("create", "--bundle", host.bundle, "c1")
    assert done.code == 1
    assert done.errors.startswith(f"hawse: {error}")
    assert evidence in done.errors
    assert host.names() == []


def test_start_is_answered_though_the_program_has_ended(host: Sandboxes) -> None:
    """The trace of a start is written in between, which takes a call of the guest."""
    host.program("exit", "0")
    host.hawse.configure(f'{host.text}\n[timeline]\ndirectory = "{host.directory}"\n')
    assert host.hawse("run", "--bundle", host.bundle, "c1") == Done(0, "", "")
    drawn = host.hawse("timeline", f"{host.directory}/c1.json")
    assert drawn.code == 0
    assert "command line: plan made" in drawn.output


def test_descriptors_of_systemd_are_passed(host: Sandboxes) -> None:
    """For example the sockets of a systemd unit: the environment of the program announces them, as with runc."""
    host.program("env")
    hawse = Runtime(host.directory)
    hawse.configure(host.text)
    words = hawse.argv("run", "--bundle", host.bundle, "c1")
    script = 'export LISTEN_FDS=1 LISTEN_PID=$$; exec "$@" 3>/dev/null'
    done = subprocess.run(
        ["bash", "-c", script, "bash", *words], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.split() == [b"PATH=/bin:/usr/bin", b"LISTEN_FDS=1", b"LISTEN_PID=1"]
