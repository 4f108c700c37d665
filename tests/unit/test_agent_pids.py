"""Signals of the agent to processes by their pids: no process with a reused pid is signalled."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from hawse.agent.system.pids import _BATCH, signal_each
from tests.support.patience import patience
from tests.support.reaper import run_with_reaper


@pytest.fixture
def program() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        yield process
        process.kill()


def finding(*answers: list[int]) -> Iterator[list[int]]:
    yield from answers


def test_process_that_is_found_twice_is_signalled(program: subprocess.Popen[bytes]) -> None:
    answers = finding([program.pid], [program.pid])
    signal_each(lambda: next(answers), 15)
    assert program.wait(patience(3)) == -15


def test_process_with_a_reused_pid_is_not_signalled(program: subprocess.Popen[bytes]) -> None:
    """The agent no longer finds it once it has opened a descriptor of it."""
    answers = finding([program.pid, 2**22 + 5], [])
    signal_each(lambda: next(answers), 9)
    output, _ = program.communicate(b"alive", timeout=patience(3))
    assert (output, program.returncode) == (b"alive", 0)


def test_many_processes_are_signalled_with_few_descriptors(program: subprocess.Popen[bytes]) -> None:
    missing = [2**22 + number for number in range(2 * _BATCH)]
    signal_each(lambda: [program.pid, *missing], 15)
    assert program.wait(patience(3)) == -15


def test_pid_of_a_held_child_is_not_reused() -> None:
    """The child has ended. It is collected, so that its pid can be reused, only afterwards."""
    script = """
reaper.start()
pid = spawn("exit 3")
with reaper.hold(pid) as lives:
    while open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] != "Z":
        pass
    time.sleep(0.1)  # time for the thread of the reaper, which must not collect it
    print(lives, pid in reaper._exits)
    os.kill(pid, 9)
print(reaper.wait(pid))
with reaper.hold(pid) as lives:
    print(lives)
"""
    assert run_with_reaper(script) == "True False\n3\nTrue\n"


def test_child_that_was_waited_for_is_not_held() -> None:
    script = """
reaper.start()
since = time.monotonic()
pid = spawn("exit 3")
while pid not in reaper._exits:
    pass
with reaper.hold(pid, since=since) as lives:
    print(lives)
with reaper.hold(pid, since=time.monotonic()) as lives:
    print(lives, "an earlier one of the same pid has ended")
"""
    assert run_with_reaper(script) == "False\nTrue an earlier one of the same pid has ended\n"


def test_process_is_forgotten_before_its_pid_can_be_used_again() -> None:
    script = """
from hawse.agent.container.process import Process
from hawse.errors import StateError
reaper.start()
process = Process(1, None, reaper)
process.pid = spawn("exit 3")
while process.pid not in reaper._exits:
    pass
pid = process.pid
for act in (lambda: process.signal(9), lambda: process.open("root", "it has ended")):
    try:
        act()
    except StateError as error:
        print(error.message)
print(process.wait(), process.pid)
process.pid = spawn("exec sleep 1000")
fd = process.open("ns/net", "it has ended")
print(os.fstat(fd).st_ino == os.stat("/proc/self/ns/net").st_ino)
process.signal(15)
print(process.wait())
"""
    assert (
        run_with_reaper(script) == "container not running: os: process already finished\nit has ended\n3 0\nTrue\n143\n"
    )
