"""Programs with the agent's reaper: it waits for every child of its process, so each test runs it in a new process."""

from __future__ import annotations

import os
import subprocess
import sys

import hawse

_PACKAGES = os.path.dirname(os.path.dirname(os.path.abspath(hawse.__file__)))
_BEGIN = f"""
import os, sys, threading, time
sys.path.insert(0, {_PACKAGES!r})
from hawse.agent.system import syscalls
from hawse.agent.system.reaper import Reaper
reaper = Reaper()
def spawn(script, **other):
    return reaper.spawn(["/bin/sh", "-c", script], environment={{"PATH": "/bin:/usr/bin"}}, **other)
"""


def run_with_reaper(script: str) -> str:
    """Run a Python program that has ``reaper`` and ``spawn``, and must succeed; returns its output."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _BEGIN + script], capture_output=True, text=True, check=False, timeout=30
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout
