"""oom_score_adj: which process the host kills first when memory is exhausted."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hawse.linux import oom_score
from hawse.plan.capacity import Room
from tests.support.ready import EMULATED, Planner


@pytest.mark.parametrize(
    ("now", "containers", "expected"),
    [
        (-998, [], -998),
        (-998, [1000], 1000),
        (-998, [2, 999, -997], 999),
        (-998, [-997], -997),
        (0, [-500], -500),
        (1000, [], 1000),
        (1000, [500], 500),
    ],
)
def test_pod_vm_has_the_highest_value_of_its_containers(now: int, containers: list[int], expected: int) -> None:
    """A VM without containers keeps its value: they may be between two starts."""
    assert oom_score.of_vm(now, containers) == expected


def test_value_of_another_process_is_raised_and_read() -> None:
    with subprocess.Popen(["/bin/sleep", "1000"]) as child:
        try:
            own = oom_score.read()
            assert oom_score.read(child.pid) == own
            oom_score.write(own + 1 if own < 1000 else own, child.pid)
            assert oom_score.read(child.pid) == min(own + 1, 1000)
        finally:
            child.kill()
    with pytest.raises(OSError, match="No such file"):
        oom_score.read(child.pid)


@pytest.mark.parametrize("requested", [None, 0, 77, -998])
def test_plan_has_the_value_of_the_specification_or_of_the_caller(tmp_path: Path, requested: int | None) -> None:
    """runc keeps the caller's value if the specification has none."""
    host = Planner(str(tmp_path))

    def change(spec: dict[str, Any]) -> None:
        spec["process"].pop("oomScoreAdj", None)
        if requested is not None:
            spec["process"]["oomScoreAdj"] = requested

    host.write(change)
    expected = oom_score.read() if requested is None else requested
    planned = host.sandbox(host.config(more=EMULATED))
    assert (planned.container.oom_score_adj, planned.machine.oom_score_adj) == (expected, expected)
    assert planned.container.spec["process"].get("oomScoreAdj", 0) == expected
    joined = host.container(Room(spares=[], memory_mib=1024), host.config(more=EMULATED))
    assert joined.oom_score_adj == expected


def test_callers_value_is_passed_to_the_guest(tmp_path: Path) -> None:
    """Tested in a separate process: without CAP_SYS_RESOURCE the value could not be lowered again."""
    host = Planner(str(tmp_path))
    host.write(lambda spec: spec["process"].pop("oomScoreAdj", None))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            oom_score.write(1000)
            container = host.sandbox(host.config(more=EMULATED)).container
            code = 0 if container.inherited.oom_score_adj == container.oom_score_adj == 1000 else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_warning_names_both_values() -> None:
    assert oom_score.warning(-500, 0).startswith("process.oomScoreAdj: cannot set -500 for the VM, which has 0: ")
