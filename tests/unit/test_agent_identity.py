"""The seed, the clock and other data that the agent takes from the host at its start, and the steps that it reports."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hawse.agent.machine.identity import read_seed
from hawse.agent.system import syscalls, trace
from hawse.errors import VmError
from hawse.linux import mounts


@pytest.mark.parametrize("size", [16, 64, 512])
def test_seed_has_a_minimum_size(size: int) -> None:
    assert read_seed("a5" * size) == b"\xa5" * size


@pytest.mark.parametrize("size", [0, 15, 513])
def test_seed_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(VmError, match=f"^a seed of {size} bytes; 16 to 512 are allowed$"):
        read_seed("a5" * size)


def test_steps_are_recorded_up_to_a_limit() -> None:
    trace.clear()
    for number in range(300):
        trace.add(str(number), number, number + 1)
    steps = trace.steps()
    trace.clear()
    assert (len(steps), steps[0], steps[-1]) == (256, step("0", 0, 1), step("255", 255, 256))
    with pytest.raises(ZeroDivisionError), trace.span("fails"):
        _ = 1 // 0
    [last] = trace.steps()
    trace.clear()
    assert (last["name"], last["began_ns"] <= last["ended_ns"]) == ("fails", True)  # type: ignore[operator]


def step(name: str, began: int, ended: int) -> dict[str, object]:
    return {"name": name, "began_ns": began, "ended_ns": ended}


def test_file_that_is_not_a_module_is_named_in_the_error(tmp_path: Path) -> None:
    path = tmp_path / "nothing.ko"
    path.write_bytes(bytes(4096))
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match=r"nothing\.ko"):
        syscalls.load_module(str(path))
    assert os.listdir("/proc/self/fd") == before


def test_failed_mount_names_its_target(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        mounts.mount("none", f"{tmp_path}/nowhere", "tmpfs")
