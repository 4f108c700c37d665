"""The table of docs/security.md against /proc: the privileges of each process of a sandbox."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from hawse.config import Vm, user_ids
from hawse.linux.process_capabilities import NUMBERS
from tests.support.bundles import make_bundle
from tests.support.processes import descendants
from tests.support.runtime import Runtime

pytestmark = pytest.mark.vm

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
ROW = re.compile(r"^\| (?P<process>[\w ]+) \| (?P<cells>(?:`[^`]*`(?: \| )?){6}) \|$", re.M)


def status_of(pid: int) -> dict[str, str]:
    return dict(re.findall(r"(\w+):\t(.*)", Path(f"/proc/{pid}/status").read_text()))


def user_of(status: dict[str, str]) -> str:
    first, last = user_ids(Vm().users) or (0, 0)
    [user] = set(status["Uid"].split())
    return "vm.users" if first <= int(user) <= last else user


def capabilities_of(status: dict[str, str]) -> str:
    effective = int(status["CapEff"], 16)
    assert int(status["CapPrm"], 16) == effective
    known = {number: name.lower() for name, number in (NUMBERS | {"FSETID": 4, "SETFCAP": 31}).items()}
    names = [known.get(number, str(number)) for number in range(64) if effective >> number & 1]
    return " ".join(sorted(names)) or "none"


def row_of(pid: int) -> list[str]:
    """The cells for a process: user, capabilities, no_new_privs, system call filter, private namespaces, variables."""
    status = status_of(pid)
    own = [kind for kind in NAMESPACES if os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")]
    variables = [
        word.partition(b"=")[0].decode() for word in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")[:-1]
    ]
    return [
        user_of(status),
        capabilities_of(status),
        "yes" if status["NoNewPrivs"] == "1" else "no",
        "yes" if status["Seccomp"] == "2" else "no",
        " ".join(own) or "none",
        " ".join(sorted(variables)) or "none",
    ]


def documented() -> dict[str, list[str]]:
    """The rows of the table in the page."""
    rows = ROW.finditer(PAGE.read_text())
    return {row["process"]: [cell.strip("` ") for cell in row["cells"].split("|")] for row in rows}


def test_privileges_of_each_process_are_those_of_the_security_page(runtime: Runtime, tmp_path: Path) -> None:
    bundle = str(tmp_path / "bundle")
    make_bundle(bundle, ["/bin/sleep", "1000"])
    first = runtime.run_detached(bundle, "c1")
    beside = runtime.start("exec", "c1", "/bin/sh", "-c", "echo up; sleep 1000", stdout=subprocess.PIPE)
    assert beside.stdout is not None
    assert beside.stdout.readline() == b"up\n"
    monitor = runtime.monitor("c1")
    [other] = [pid for pid in json.loads(runtime("ps", "--format", "json", "c1").output) if pid != first]
    below = {Path(f"/proc/{pid}/comm").read_text().strip(): pid for pid in descendants(monitor)}
    [qemu] = [pid for name, pid in below.items() if name.startswith("qemu")]
    # virtiofsd starts a child in a PID namespace, which serves files; the parent only waits.
    virtiofsd = max(pid for name, pid in below.items() if name.startswith("virtiofsd"))
    rows = {
        "QEMU": row_of(qemu),
        "virtiofsd": row_of(virtiofsd),
        "monitor": row_of(monitor),
        "proxy of the first process": row_of(first),
        "proxy of an exec": row_of(other),
    }
    for process, cells in rows.items():
        print(f"| {process} | {' | '.join(f'`{cell}`' for cell in cells)} |")
    assert rows == documented()
    for pid in (qemu, virtiofsd):
        assert re.search(r"Max core file size\s+0\s+0", Path(f"/proc/{pid}/limits").read_text())
    assert re.search(r"Max data size\s+1073741824\s", Path(f"/proc/{monitor}/limits").read_text())
    assert "Max data size             unlimited" in Path(f"/proc/{qemu}/limits").read_text()
    threads = {status_of(int(task))["CapEff"] for task in os.listdir(f"/proc/{monitor}/task")}
    assert threads == {status_of(monitor)["CapEff"]}, "of every thread"
    assert runtime("kill", "c1", "KILL").code == 0
    beside.wait()
    beside.stdout.close()
