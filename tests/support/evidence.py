"""Evidence of a failing test: consoles, QMP logs, states and the stacks of processes, in one directory.

Code that creates a directory of hawse or of an engine registers it with :func:`watch`; the lab registers a function by
:func:`collected`. tests/conftest.py calls :func:`save` when a test fails or exceeds its time limit, while all processes
still run.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.support.processes import all_pids, command_line, descriptors

_TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
#: The directory for evidence; the test of this module sets another one.
EVIDENCE = os.environ.get("HAWSE_EVIDENCE", os.path.join(_TOP, "evidence"))
_PROCESSES = re.compile(r"qemu-system|virtiofsd|hawse|conmon|podman|containerd|dockerd|crun|runc")
_PY_SPY = os.path.join(os.path.dirname(sys.executable), "py-spy")
Collector = Callable[[str], None]
"""Saves what it knows below the directory that it is given."""
_collectors: list[Collector] = []
_saved: set[str] = set()
_directories: list[tuple[str, int]] = []
#: Maximum bytes of one file: the beginning of a flooded log is cut off.
_MOST = 4 * 1024 * 1024


def watch(directory: str, *, depth: int = 1) -> None:
    """When a test fails, save the logs and states down to ``depth`` below ``directory``, if it still exists.

    Root file systems and shares, which containers write to, are deeper.
    """
    _directories.append((directory, depth))


@contextmanager
def collected(collector: Collector) -> Iterator[None]:
    """Call ``collector`` for each test that fails in this context."""
    _collectors.append(collector)
    try:
        yield
    finally:
        _collectors.remove(collector)


def save(test: str) -> str:
    """Save the evidence of a test; returns the directory. A collector that fails leaves its error there.

    Only the first failure of a test is saved: at a later one, in its clean-up, the processes have ended.
    """
    directory = os.path.join(EVIDENCE, re.sub(r"[^\w.=-]+", "_", test)[:150])
    if directory in _saved:
        return directory
    _saved.add(directory)
    shutil.rmtree(directory, ignore_errors=True)
    os.makedirs(directory)
    for number, collector in enumerate([*_collectors, _save_logs, _save_processes]):
        try:
            collector(directory)
        except Exception as error:  # the failure of the test is more important
            with open(f"{directory}/collector-{number}.error", "w") as file:
                file.write(f"{type(error).__name__}: {error}\n")
    return directory


def _save_logs(directory: str) -> None:
    for number, (top, depth) in enumerate(_directories):
        for path in _within(top, depth) if os.path.isdir(top) else ():
            for name in os.listdir(path):
                if name.endswith((".log", ".json", ".old")) and os.path.isfile(f"{path}/{name}"):
                    target = os.path.join(directory, str(number), os.path.relpath(path, top))
                    os.makedirs(target, exist_ok=True)
                    _copy_end(f"{path}/{name}", f"{target}/{name}")


def _within(top: str, depth: int) -> list[str]:
    """``top`` and the directories below it, down to ``depth``."""
    children = [entry.path for entry in os.scandir(top) if depth and entry.is_dir(follow_symlinks=False)]
    return [top, *(path for child in children for path in _within(child, depth - 1))]


def _copy_end(source: str, target: str) -> None:
    with open(source, "rb") as reader, open(target, "wb") as writer:
        reader.seek(max(0, os.path.getsize(source) - _MOST))
        writer.write(reader.read(_MOST))


def _save_processes(directory: str) -> None:
    """Save for each process that may be involved: command line, state, kernel stacks, descriptors, Python's stack."""
    with open(f"{directory}/processes.txt", "w") as file:
        for pid in sorted(all_pids()):
            words = command_line(pid)
            if not _PROCESSES.search(words) or pid == os.getpid():
                continue
            file.write(f"== {pid}: {words[:1000]}\n{_status(pid)}\n")
            for task in os.listdir(f"/proc/{pid}/task") if os.path.isdir(f"/proc/{pid}/task") else ():
                stack = _read(f"/proc/{pid}/task/{task}/stack").replace("\n", "\n    ")
                file.write(f"  thread {task}:\n    {stack.rstrip()}\n")
            file.writelines(f"  {fd} -> {target}\n" for fd, target in descriptors(pid).items())
            if "python" in words.partition(" ")[0] or words.startswith("hawse["):
                file.write(_python_stack(pid))


def _status(pid: int) -> str:
    fields = ("State", "PPid", "Threads", "VmRSS")
    return "  " + ", ".join(line for line in _read(f"/proc/{pid}/status").splitlines() if line.startswith(fields))


def _python_stack(pid: int) -> str:
    try:
        done = subprocess.run(
            [_PY_SPY, "dump", "--pid", str(pid)],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"  py-spy: {error}\n"
    return done.stdout + done.stderr


def _read(path: str) -> str:
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError:
        return ""
