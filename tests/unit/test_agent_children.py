"""Children of the agent: exit codes, orphans, and reused pids.

The real reaper waits for every child of its process, so each test runs in a new process.
"""

from __future__ import annotations

from tests.support.reaper import run_with_reaper


def test_exit_codes_and_signals() -> None:
    script = "reaper.start()\nprint([reaper.wait(spawn(s)) for s in ('exit 0', 'exit 7', 'kill -9 $$', 'kill -15 $$')])"
    assert run_with_reaper(script) == "[0, 7, 137, 143]\n"


def test_child_without_descriptors_has_those_of_its_parent() -> None:
    assert run_with_reaper("reaper.start()\nreaper.wait(spawn('echo hello'))") == "hello\n"


def test_orphan_is_adopted_and_its_exit_code_is_kept() -> None:
    """The child ends at once, its own child later. Between both the reaper has no child."""
    script = """
syscalls.become_subreaper()
reaper.start()
reading, writing = os.pipe()
since = time.monotonic()
first = spawn("sh -c 'sleep 0.1; exit 9' & echo $! >&3", descriptors={3: writing})
assert reaper.wait(first) == 0
print(reaper.wait(int(os.read(reading, 100)), since=since))
"""
    assert run_with_reaper(script) == "9\n"


def test_exit_of_an_earlier_process_with_the_same_pid_is_ignored() -> None:
    """It was recorded before the orphan started."""
    script = """
reaper.start()
pid = spawn("exit 3")
while pid not in reaper._exits:
    pass
waiter = threading.Thread(target=lambda: print(reaper.wait(pid, since=time.monotonic())))
waiter.start()
for _ in range(3):
    reaper.wait(spawn("exit 0"))
assert waiter.is_alive()
with reaper._changed:
    reaper._exits[pid] = (time.monotonic(), 4)
    reaper._changed.notify_all()
waiter.join()
"""
    assert run_with_reaper(script) == "4\n"


def test_exits_that_nobody_requests_are_dropped() -> None:
    """Only 1024 exits are kept. The test fills the record, since that many orphans would take long."""
    script = """
reaper.start()
for number in range(1023):
    reaper._exits[-number - 1] = (0.0, 0)
first = spawn("exit 0")
while first not in reaper._exits:
    pass
print(len(reaper._exits), -1 in reaper._exits)
second = spawn("exit 0")
while second not in reaper._exits:
    pass
with reaper._changed:
    print(len(reaper._exits), -1 in reaper._exits, -2 in reaper._exits, first in reaper._exits)
"""
    assert run_with_reaper(script) == "1024 True\n1024 False True True\n"


def test_traced_process_that_is_given_back_to_its_parent_does_not_end_the_reaper() -> None:
    """The kernel reports the exit of a traced process to the reaper. Before the reaper calls waitpid(2) for it, the
    tracer's thread ends, and the kernel gives the process back to its parent."""
    script = """
from hawse.agent.container import sessions
reaper.start()
[thread] = [thread for thread in threading.enumerate() if thread.name == "reaper"]
def waits_for_the_lock():  # futex(2) is the system call 202
    return open(f"/proc/self/task/{thread.native_id}/syscall").read().startswith("202 ")
said, tells = os.pipe()
gate, opens = os.pipe()
parent = spawn("sh -c 'read x' <&4 & echo $! >&3; wait; exit 5", descriptors={3: tells, 4: gate})
child = int(os.read(said, 100))
seized, may_end = threading.Event(), threading.Event()
def trace():
    sessions._ptrace(sessions._SEIZE, child, 0, 0)
    seized.set()
    may_end.wait()
tracer = threading.Thread(target=trace)
tracer.start()
seized.wait()
with reaper.hold(parent):
    os.close(opens)
    while not waits_for_the_lock():
        time.sleep(0.001)
    may_end.set()
    tracer.join()
    # The parent, which waits for it, reaps it.
    while os.path.exists(f"/proc/{child}"):
        time.sleep(0.001)
print(reaper.wait(parent), reaper.wait(spawn("exit 7")))
"""
    assert run_with_reaper(script) == "5 7\n"
