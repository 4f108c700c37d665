"""Runs in a container with its own cgroups of version 2, which acts as the host for the tested code. Prints JSON."""

import ctypes
import json
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, "/hawse")
from hawse.host.cgroup import oom
from hawse.host.cgroup.sandbox_cgroup import HostCgroup, release

ROOT = "/sys/fs/cgroup"
DIRECTORY = f"{ROOT}/engine/c1"
IN_MODIFY = 2


def read(name: str) -> str:
    with open(f"{DIRECTORY}/{name}") as file:
        return file.read()


def kills(name: str) -> int:
    return int(dict(line.split() for line in read(name).splitlines())["oom_kill"])


def seen() -> dict[str, object]:
    """The counters and settings of the cgroup."""
    return {
        "members": read("cgroup.procs").split() == [str(member.pid)],
        "children": [entry.name for entry in os.scandir(DIRECTORY) if entry.is_dir()],
        "given": read("cgroup.subtree_control").split(),
        "lives": member.poll() is None,
        "kills": kills("memory.events"),
        "own": kills("memory.events.local"),
    }


os.mkdir(f"{ROOT}/self")
with open(f"{ROOT}/self/cgroup.procs", "w") as file:
    file.write("0")
state = "/tmp/state"
os.mkdir(state)
# Its class imports a library that is missing here.
asked = {"shares": 0, "cpus": "", "mems": ""}
limits = SimpleNamespace(**asked, memory=1 << 29, tasks=4096, quota=150_000, period=100_000)
plan: Any = SimpleNamespace(path="/engine/c1", limits=limits)
cgroup = HostCgroup(plan, state)
warnings = cgroup.make()
member = subprocess.Popen(["/usr/bin/sleep", "1000"])
process: Any = SimpleNamespace(pid=member.pid, is_alive=lambda: True)
cgroup.add(process)

libc = ctypes.CDLL(None)
# As containerd's shim and conmon watch it.
watch = libc.inotify_init1(os.O_NONBLOCK)
libc.inotify_add_watch(watch, f"{DIRECTORY}/memory.events".encode(), IN_MODIFY)


def is_told() -> bool:
    try:
        return bool(os.read(watch, 4096))
    except BlockingIOError:
        return False


result: dict[str, object] = {"warnings": warnings, "fit": oom.unfit(DIRECTORY), "before": seen(), "early": is_told()}
try:
    oom.record(DIRECTORY, program="/none")
except OSError as error:
    result["failure"] = [error.strerror, seen(), is_told()]
cgroup.record_oom()
result["after"] = seen()
result["limits"] = [read(name).split() for name in ("memory.max", "pids.max", "cpu.max")]
result["told"] = is_told()
for name in oom.LEFT:  # as left by a recording whose process was killed
    os.mkdir(f"{DIRECTORY}/{name}")
result["unfit"] = oom.unfit(DIRECTORY)
member.kill()
member.wait()
result["released"] = [release(state), os.path.exists(DIRECTORY)]
print(json.dumps(result))
