"""Programs of a sandbox: their start, their recorded stderr, and their end together with the sandbox."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
from pathlib import Path

import pytest

from hawse.errors import HostError
from hawse.linux import oom_score
from hawse.linux.processes import ChildrenApart, NamespaceError
from hawse.monitor.machine import programs
from hawse.monitor.machine.programs import Program, Watched
from tests.support.monitor import runs
from tests.support.patience import patience, wait_until
from tests.support.processes import children as children_of


def program(path: Path, text: str) -> Program:
    return Program("QEMU", [sys.executable, "-IS", "-c", text], log=f"{path}/qemu.log")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import sys; sys.stderr.write('last words'); sys.exit(1)", "QEMU ended with exit code 1"),
        ("import sys; sys.stderr.write('last words'); sys.exit(255)", "QEMU ended with exit code 255"),
        ("import os; os.write(2, b'last words'); os.abort()", "QEMU was killed by signal 6"),
        ("import sys; sys.stderr.write('last words')", None),
    ],
)
def test_exit_of_a_program_is_reported_with_its_last_output(tmp_path: Path, text: str, message: str | None) -> None:
    async def story() -> None:
        watched = Watched(program(tmp_path, text))
        async with asyncio.timeout(patience(7)):
            death = await watched.death()
        if message is None:
            assert death is None, "a guest that powered itself off"
        else:
            assert death is not None
            assert (death.message, death.evidence) == (message, "last words")
        watched.close()
        assert (tmp_path / "qemu.log").read_text() == "last words"

    asyncio.run(story())


def test_child_that_keeps_stderr_open_does_not_delay_the_exit(tmp_path: Path) -> None:
    text = "import os, time\nif os.fork() == 0: time.sleep(60)\nos.write(2, b'x' * 100000)\nos._exit(3)"

    async def story() -> None:
        watched = Watched(program(tmp_path, text))
        async with asyncio.timeout(patience(7)):
            death = await watched.death()
        assert death is not None
        assert death.message == "QEMU ended with exit code 3"
        os.killpg(watched.program.process.pid, signal.SIGKILL)
        watched.close()
        assert (tmp_path / "qemu.log").stat().st_size == 100000

    asyncio.run(story())


def test_program_has_its_own_session_and_only_its_descriptors(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.set_inheritable(reading, True)
    text = f"import os; os.write({writing}, ' '.join([str(os.getsid(0)), *os.listdir('/proc/self/fd')]).encode())"
    started = Program("QEMU", [sys.executable, "-IS", "-c", text], log=f"{tmp_path}/log", descriptors=[writing])
    os.close(writing)
    with open(reading, "rb") as file:
        session, *fds = file.read().split()
    assert int(session) == started.process.pid
    assert len(fds) == 5, "stdio, passed descriptors, and the directory that it lists"
    started.end()


@pytest.mark.parametrize("lock_memory", [False, True])
def test_program_with_host_devices_may_lock_memory(tmp_path: Path, lock_memory: bool) -> None:
    """VFIO charges each mapping of a guest's memory to RLIMIT_MEMLOCK (drivers/vfio/vfio_iommu_type1.c)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    reading, writing = os.pipe()
    text = f"import os, resource; os.write({writing}, repr(resource.getrlimit(resource.RLIMIT_MEMLOCK)).encode())"
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, hard))
    try:
        started = Program(
            "QEMU", [sys.executable, "-IS", "-c", text], log=f"{tmp_path}/log", descriptors=[writing],
            lock_memory=lock_memory,
        )  # fmt: skip
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (soft, hard))
    os.close(writing)
    with open(reading) as file:
        limits = file.read()
    started.end()
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    # As root in a container, tests may lack CAP_SYS_RESOURCE, which is needed to raise the hard limit.
    assert limits in ([repr(unlimited), repr((hard, hard))] if lock_memory else [repr((65536, hard))])


def test_program_is_stopped_on_request(tmp_path: Path) -> None:
    started = program(tmp_path, "import time; time.sleep(60)")
    started.end()
    assert started.process.returncode == -signal.SIGTERM
    assert not runs(started.process.pid)


def test_program_that_cannot_be_executed_is_named_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "qemu").touch()
    with pytest.raises(HostError, match=r"cannot run QEMU: .*/qemu: Permission denied") as caught:
        Program("QEMU", [f"{tmp_path}/qemu"], log=f"{tmp_path}/log")
    assert caught.value.hint == "install it, or set its path in the configuration"


def test_stopping_a_program_with_children_kills_its_children(tmp_path: Path) -> None:
    """virtiofsd serves from a child, which a guest may have taken over: it ignores signals and is killed."""
    text = (
        "import os, signal, time\n"
        "reading, writing = os.pipe()\n"
        "if os.fork() == 0:\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_IGN); os.setsid(); os.write(writing, b'x')\n"
        "    while True: time.sleep(60)\n"
        "os.read(reading, 1)\n"
        f"open('{tmp_path}/ready', 'w').close()\n"
        "while True: time.sleep(60)\n"
    )
    argv = [sys.executable, "-IS", "-c", text]
    whole = Program("virtiofsd", argv, log=f"{tmp_path}/log", whole=True)
    wait_until(lambda: (tmp_path / "ready").exists())
    [started] = children_of(whole.process.pid)
    whole.end()
    assert whole.process.returncode == -signal.SIGKILL
    assert not os.path.exists(f"/proc/{started}")


def test_program_that_cannot_be_signalled_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For example QEMU, which is another user, if the monitor lacks CAP_KILL."""
    sleeping = program(tmp_path, "import time; time.sleep(60)")

    def refuse(_number: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as patched:
        patched.setattr(sleeping.process, "send_signal", refuse)
        sleeping.end()
    assert sleeping.process.poll() is None
    sleeping.process.kill()
    sleeping.process.wait()


def test_any_failure_to_prepare_a_program_is_named_in_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python's setrlimit() raises ValueError for a limit above the hard limit."""

    def refuse() -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(programs, "_lift_data", refuse)
    with pytest.raises(HostError, match="cannot confine QEMU: not allowed to raise maximum limit"):
        program(tmp_path, "pass")


def test_namespace_that_cannot_be_created_is_named_in_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_self: object) -> None:
        raise NamespaceError(1, "Operation not permitted")

    monkeypatch.setattr(ChildrenApart, "__enter__", refuse)
    with pytest.raises(HostError, match="cannot start QEMU in a PID namespace: Operation not permitted"):
        Program("QEMU", ["/bin/true"], log=f"{tmp_path}/log", whole=True)


def test_program_starts_with_its_oom_score_which_children_inherit(tmp_path: Path) -> None:
    """virtiofsd serves from a child, which inherits the value."""
    text = "import os, time\nif os.fork() == 0: time.sleep(60)\nos.write(2, b'x')\ntime.sleep(60)"
    score = min(oom_score.read() + 7, 1000)
    argv = [sys.executable, "-IS", "-c", text]
    started = Program("virtiofsd", argv, log=f"{tmp_path}/log", whole=True, oom_score_adj=score)
    try:
        assert started.process.stderr is not None
        started.process.stderr.read(1)
        processes = started.processes()
        assert [oom_score.read(process.pid) for process in processes] == [score, score]
        assert processes[0].pid == started.process.pid
    finally:
        started.end()
    assert started.processes() == []


def test_program_starts_even_if_its_oom_score_cannot_be_set(tmp_path: Path) -> None:
    started = Program("QEMU", [sys.executable, "-c", ""], log=f"{tmp_path}/log", oom_score_adj=5000)
    assert started.process.wait() == 0
    started.end()
