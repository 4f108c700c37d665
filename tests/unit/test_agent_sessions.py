"""Sessions of `exec`: a program that forks as crun does is traced, and its grandchild leads a session. The reaper waits
for every child of its process, so the test traces in a new process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import hawse
from hawse.agent.container.sessions import is_before_1_20

_PACKAGES = os.path.dirname(os.path.dirname(os.path.abspath(hawse.__file__)))
#: Reads its configuration, forks a child with a session that forks the process, and tells who leads what.
_CRUN = """
import json, os, sys, time
text = open(sys.argv[1]).read()
out = int(sys.argv[2])
ready, tell = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.write(tell, b"x")
        os.read(int(sys.argv[3]), 1)
        leads = os.getsid(0) == os.getpid() == os.getpgid(0)
        tracer = open("/proc/self/status").read().split("TracerPid:")[1].split()[0]
        os.write(out, json.dumps([len(text), leads, tracer]).encode())
        os._exit(0)
    os._exit(0)
os.read(ready, 1)
os._exit(5)
"""
_TRACE = f"""
import os, sys
sys.path.insert(0, {_PACKAGES!r})
from hawse.agent.container import sessions
from hawse.agent.system import syscalls
from hawse.agent.system.reaper import Reaper
reaper = Reaper()
syscalls.become_subreaper()
reaper.start()
fifo, program = sys.argv[1:]
os.mkfifo(fifo)
said, tells = os.pipe()
gate, opens = os.pipe()
pid = reaper.spawn([sys.executable, "-I", "-S", "-c", program, fifo, "3", "4"], environment={{}},
                   descriptors={{3: tells, 4: gate}})
sessions.trace_and_write(pid, fifo, "x" * 200_000, reaper)
code = reaper.wait(pid)
os.write(opens, b"x")
os.close(tells)
print(code, os.read(said, 100).decode())
"""


def test_grandchild_leads_its_session_and_is_traced_no_more(tmp_path: Path) -> None:
    for number in range(5):  # the kernel may report a process before its fork, and the other way round
        words = [sys.executable, "-I", "-S", "-c", _TRACE, str(tmp_path / f"fifo{number}"), _CRUN]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=10)
        assert done.returncode == 0, done.stderr
        code, _, output = done.stdout.partition(" ")
        assert (code, json.loads(output)) == ("5", [200_000, True, "0"])


def test_program_that_ends_before_it_reads_is_waited_for(tmp_path: Path) -> None:
    words = [sys.executable, "-I", "-S", "-c", _TRACE, str(tmp_path / "fifo"), "raise SystemExit(7)"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=10)
    assert done.stdout == "7 \n", done.stderr


@pytest.mark.parametrize(
    ("text", "old"),
    [
        (b"crun version 1.8.1\ncommit: f8a0\n", True),
        (b"crun version 1.19.1\n", True),
        (b"crun version 1.20\n", False),
        (b"crun version 1.21\n", False),
        (b"crun version 2.0\n", False),
        (b"youki version 0.3\n", False),
        (b"", False),
    ],
)
def test_crun_before_1_20_lacks_setsid(text: bytes, old: bool) -> None:
    assert is_before_1_20(text) is old
