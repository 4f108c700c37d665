"""The scope that systemd creates for a container: the calls of busctl, and how long the move of the process is
awaited."""

from __future__ import annotations

from pathlib import Path

import pytest

from hawse.host.cgroup.systemd import end_scope, enter_scope
from hawse.oci.limits.cgroups import CgroupPlan

PLAN = CgroupPlan(path="/a.slice/b-c1.scope", slice="a.slice", unit="b-c1.scope")
WITHOUT = "the cgroup /a.slice/b-c1.scope is created without systemd"


def busctl(directory: Path, script: str) -> str:
    """A program that records its arguments and runs the script; the process is 77."""
    program = directory / "busctl"
    program.write_text(f'#!/bin/sh\necho "$@" >>{directory}/asked\nmkdir -p {directory}/77\n{script}\n')
    program.chmod(0o755)
    return str(program)


def enter(directory: Path, script: str, *, seconds: float = 60.0) -> list[str]:
    return enter_scope(
        PLAN, 77, busctl=busctl(directory, script), running=str(directory), proc=str(directory), seconds=seconds
    )


@pytest.mark.parametrize("delay", ["", "(sleep 0.1; mv {0}/new {0}/77/cgroup) >/dev/null 2>&1 &"])
def test_process_that_systemd_moves_at_once_or_later(tmp_path: Path, delay: str) -> None:
    """The answer of systemd is the name of a job, which may take a while."""
    lines = r"12:pids:/other\n0::/a.slice/b-c1.scope\n"
    script = f"printf '{lines}' >{tmp_path}/{'new' if delay else '77/cgroup'}\n{delay.format(tmp_path)}"
    assert enter(tmp_path, script) == []
    assert "StartTransientUnit" in (tmp_path / "asked").read_text()


def test_process_that_systemd_does_not_move(tmp_path: Path) -> None:
    """Neither a unit whose name ends alike nor a child of the unit is meant."""
    script = f"printf '0::/a.slice/xb-c1.scope\\n1:x:/a.slice/b-c1.scope/child\\n' >{tmp_path}/77/cgroup"
    for body in (script, f"rm -r {tmp_path}/77"):
        assert enter(tmp_path, body, seconds=0.02) == [
            f"systemd did not move the process into b-c1.scope within 0.02 s: {WITHOUT}"
        ]


def test_systemd_is_not_called_without_a_unit_or_without_systemd(tmp_path: Path) -> None:
    program = busctl(tmp_path, "true")
    assert enter_scope(CgroupPlan(path="/x"), 77, busctl=program, running=str(tmp_path)) == []
    [warning] = enter_scope(PLAN, 77, busctl=program, running=f"{tmp_path}/none")
    assert warning == f"systemd does not run here: {WITHOUT}"
    end_scope("b-c1.scope", systemctl=program, running=f"{tmp_path}/none")
    assert not (tmp_path / "asked").exists()
