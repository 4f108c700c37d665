"""The prepared crun, which waits for its configuration: the agent awaits it, sends the configuration, and handles its
failure to open the file."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from hawse.agent.container.prepared import Prepared, owner
from hawse.agent.system.reaper import Reaper
from hawse.errors import VmError
from tests.support.patience import patience

SPEC: dict[str, Any] = {"process": {"args": ["/bin/true"], "user": {"uid": 7, "gid": 8}}}


class FakeReaper:
    """Runs a script as crun; ``$fifo`` is its configuration, ``$pid_file`` the file for its pid."""

    def __init__(self, script: str) -> None:
        self.script = script
        self.programs: dict[int, subprocess.Popen[bytes]] = {}

    def spawn(self, argv: Sequence[str], *, descriptors: Mapping[int, int], **_other: Any) -> int:
        options = dict(word[2:].split("=", 1) for word in argv if word.startswith("--"))
        names = f"fifo={shlex.quote(options['config'])} pid_file={shlex.quote(options['pid-file'])}"
        program = subprocess.Popen(["sh", "-c", f"{names}; {self.script}"], stdout=descriptors[1])
        self.programs[program.pid] = program
        return program.pid

    def wait(self, pid: int) -> int:
        return self.programs.pop(pid).wait(patience(10))


def prepare(tmp_path: Path, script: str, *, seconds: float = 60) -> tuple[Prepared, FakeReaper]:
    reaper = FakeReaper(script)
    prepared = Prepared(
        directory=f"{tmp_path}/prepared", reaper=cast(Reaper, reaper), program="/bin/crun", root=str(tmp_path),
        seconds=seconds,
    )  # fmt: skip
    return prepared, reaper


def test_crun_that_opens_its_configuration_late_is_awaited(tmp_path: Path) -> None:
    """crun opens its configuration a second time after it has read it (crun src/libcrun/container.c)."""
    script = "sleep 0.2; cat $fifo; cat $fifo; echo 77 >$pid_file"
    prepared, _ = prepare(tmp_path, script)
    large = {**SPEC, "annotations": {"text": "x" * 10_000}}
    assert prepared.create(large) == 77
    [output] = [fd for number, fd in prepared.pipes.release().items() if number == 1]
    with open(output, "rb") as pipe:
        assert (os.fstat(output).st_uid, os.fstat(output).st_gid) == (7, 8)
        text = pipe.read().decode()
    assert text == json.dumps(large) * 2


def test_crun_that_waits_for_its_configuration_has_settled(tmp_path: Path) -> None:
    with open(f"/proc/{os.getppid()}/wchan") as file:
        if file.read() == "0":
            pytest.skip("this kernel does not say where a process waits")
    prepared, reaper = prepare(tmp_path, "sleep 0.2; read line <$fifo")
    prepared.settle()
    [(pid, program)] = reaper.programs.items()
    with open(f"/proc/{pid}/wchan") as file:
        assert file.read() == "wait_for_partner"
    program.kill()
    program.wait()
    prepared.pipes.close()


def test_crun_that_has_ended_or_never_waits_counts_as_settled(tmp_path: Path) -> None:
    prepared, reaper = prepare(tmp_path, "exec sleep 1000", seconds=0.05)
    prepared.settle()
    [(pid, program)] = reaper.programs.items()
    program.kill()
    reaper.wait(pid)
    prepared.settle()
    prepared.pipes.close()


@pytest.mark.parametrize("exists", [True, False])
def test_crun_that_does_not_open_its_configuration_is_an_error(tmp_path: Path, exists: bool) -> None:
    """After its time limit, or at once if crun has ended."""
    prepared, reaper = prepare(tmp_path, "exec sleep 1000", seconds=0.05 if exists else 10_000)
    if not exists:
        os.unlink(f"{tmp_path}/prepared/config.fifo")
    words = "No such device or address" if exists else "No such file or directory"
    with pytest.raises(VmError, match=f"^crun does not open its configuration: {words}$"):
        prepared.create(SPEC)
    [program] = reaper.programs.values()
    program.kill()
    program.wait()
    prepared.pipes.close()


def test_crun_that_ends_before_it_has_read_all_reports_its_reason(tmp_path: Path) -> None:
    """The configuration is larger than the capacity of a pipe."""
    prepared, _ = prepare(tmp_path, "head -c 1 $fifo; exit 3")
    with pytest.raises(VmError, match=r"^crun create in the guest: exit code 3$"):
        prepared.create({**SPEC, "annotations": {"text": "x" * 1_000_000}})
    prepared.pipes.close()


def test_pipes_belong_to_the_user_of_the_process() -> None:
    assert owner({"user": {"uid": 7, "gid": 8}}) == {"uid": 7, "gid": 8}
    assert owner({}) == owner({"user": {}}) == {"uid": 0, "gid": 0}
