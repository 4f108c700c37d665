"""The cgroup of the monitors: its location, the processes that are moved there, and its removal with the last
sandbox."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from hawse.host.cgroup import control_cgroup as control
from hawse.host.cgroup.control_cgroup import ControlCgroup, places
from hawse.host.cgroup.sandbox_cgroup import Hierarchy, hierarchies
from hawse.linux.processes import Process, open_process
from hawse.monitor.cpu_boost import SECONDS, CpuBoost
from tests.support import virtual_time
from tests.support.async_wait import until

CPU = Hierarchy("/c/cpu,cpuacct", 1, frozenset({"cpu", "cpuacct"}))
MEMORY = Hierarchy("/c/memory", 1, frozenset({"memory"}))
UNIFIED = Hierarchy("/c/unified", 2, frozenset())


@pytest.mark.parametrize(
    ("mounted", "path", "expected"),
    [
        ([UNIFIED], "/pods/a", [("/c/unified/hawse.control", "/c/unified/pods/a")]),
        ([MEMORY, CPU], "/pods/a", [("/c/cpu,cpuacct/hawse.control", "/c/cpu,cpuacct/pods/a")]),
        # The hybrid layout of systemd: the controllers are in version 1.
        ([MEMORY, CPU, UNIFIED], "/a", [("/c/cpu,cpuacct/hawse.control", "/c/cpu,cpuacct/a")]),
        ([MEMORY, UNIFIED], "/a", [("/c/unified/hawse.control", "/c/unified/a")]),
        ([MEMORY], "/a", []),
        ([UNIFIED], "", []),
    ],
)
def test_control_cgroup_is_in_the_hierarchy_of_the_cpu_controller(
    mounted: Sequence[Hierarchy], path: str, expected: list[tuple[str, str]]
) -> None:
    assert places(mounted, path) == expected


class Host:
    """A hierarchy of version 2 with plain files; the last pid that was written to a file of it can be read."""

    def __init__(self, directory: Path, *, exists: bool = True) -> None:
        self.mount = directory / "cgroup"
        self.state = directory / "state"
        self.state.mkdir()
        (self.mount / "pod").mkdir(parents=True)
        self.mountinfo = directory / "mountinfo"
        self.mountinfo.write_text(f"30 23 0:26 / {self.mount} rw - cgroup2 cgroup2 rw\n")
        assert len(hierarchies(self.mountinfo.read_text())) == 1
        if not exists:
            (self.mount / "pod").rmdir()

    def control(self, path: str = "/pod") -> ControlCgroup:
        return ControlCgroup(path, str(self.state), mountinfo=str(self.mountinfo))

    def inside(self, name: str) -> str:
        procs = self.mount / name / "cgroup.procs"
        return procs.read_text() if procs.exists() else ""


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_processes_are_moved_there_and_back(host: Host) -> None:
    me = open_process(os.getpid())
    cgroup = host.control()
    assert cgroup.is_apart
    assert cgroup.enter([me]) == []
    assert host.inside("hawse.control") == str(os.getpid())
    cgroup.leave([me])
    assert host.inside("pod") == str(os.getpid())
    assert (host.state / "control-cgroup").read_text() == f"{host.mount}/hawse.control\n"


def test_process_that_has_ended_is_not_moved(host: Host) -> None:
    """Its pid may belong to another process by now."""
    ended = Process(os.getpid(), -1)
    cgroup = host.control()
    assert cgroup.enter([ended]) == []
    cgroup.leave([ended])
    assert (host.inside("hawse.control"), host.inside("pod")) == ("", "")


def test_sandbox_without_a_cgroup_is_not_moved(tmp_path: Path) -> None:
    host = Host(tmp_path, exists=False)
    for path in ("/pod", ""):
        cgroup = host.control(path)
        assert not cgroup.is_apart
        assert cgroup.enter([open_process(os.getpid())]) == []
    assert os.listdir(host.mount) == []
    assert os.listdir(host.state) == []


def test_cgroup_that_cannot_be_created_is_a_warning(host: Host) -> None:
    (host.mount / "hawse.control").write_text("")
    [text] = host.control().enter([open_process(os.getpid())])
    assert f"its monitor, which cannot be moved to {host.mount}/hawse.control: Not a directory [" in text


def test_last_sandbox_removes_it(host: Host) -> None:
    control.release(str(host.state))
    cgroup = host.control()
    cgroup.enter([Process(0, -1)])
    assert (host.mount / "hawse.control").is_dir()
    (host.mount / "hawse.control" / "other").mkdir()
    control.release(str(host.state))
    assert (host.mount / "hawse.control").is_dir(), "another sandbox uses it"
    (host.mount / "hawse.control" / "other").rmdir()
    control.release(str(host.state))
    assert not (host.mount / "hawse.control").exists()


def test_hasten_needs_the_record_and_an_existing_control_cgroup(host: Host) -> None:
    me = open_process(os.getpid())
    control.hasten(str(host.state), me)
    host.control().enter([])
    control.hasten(str(host.state), me)
    assert host.inside("hawse.control") == "", "the directory was removed"
    (host.mount / "hawse.control").mkdir()
    control.hasten(str(host.state), me)
    assert host.inside("hawse.control") == str(os.getpid())


class Moves(ControlCgroup):
    """Records moves."""

    def __init__(self) -> None:
        self.moves: list[tuple[str, int]] = []

    def enter(self, processes: object) -> list[str]:
        self.moves.append(("enter", len(list(processes))))  # type: ignore[call-overload]
        return []

    def leave(self, processes: object) -> None:
        self.moves.append(("leave", len(list(processes))))  # type: ignore[call-overload]


def test_nothing_is_moved_for_a_short_task() -> None:
    async def story() -> None:
        moves = Moves()
        boost = CpuBoost(moves, lambda: [Process(1, -1)])
        async with boost.while_waiting():
            await asyncio.sleep(SECONDS - 0.1)
        await asyncio.sleep(1)
        assert moves.moves == []

    virtual_time.run(story())


def test_programs_are_moved_once_for_all_waiters_and_back_after_the_last() -> None:
    async def story() -> None:
        moves = Moves()
        boost = CpuBoost(moves, lambda: [Process(1, -1), Process(2, -1)])

        async def wait(seconds: float) -> None:
            async with boost.while_waiting():
                await asyncio.sleep(seconds)

        short, long = asyncio.create_task(wait(2)), asyncio.create_task(wait(4))
        await short
        assert moves.moves == [("enter", 2)]
        await long
        assert moves.moves == [("enter", 2), ("leave", 2)]
        await wait(2)
        assert moves.moves == [("enter", 2), ("leave", 2)] * 2

    virtual_time.run(story())


def test_waiter_can_be_cancelled() -> None:
    async def story() -> None:
        moves = Moves()
        boost = CpuBoost(moves, lambda: [Process(1, -1)])

        async def wait() -> None:
            async with boost.while_waiting():
                await asyncio.sleep(100)

        waiting = asyncio.create_task(wait())
        await asyncio.sleep(1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert moves.moves == [("enter", 1), ("leave", 1)]

    virtual_time.run(story())


@pytest.mark.parametrize("ends", [True, False])
def test_proxy_that_does_not_end_gets_cpu_time(ends: bool) -> None:
    async def story() -> None:
        moves = Moves()
        boost = CpuBoost(moves, list)
        child = os.fork()
        if child == 0:
            import signal

            signal.pause()
            os._exit(0)
        proxy = open_process(child)
        try:
            seeing = asyncio.create_task(boost.await_exit(proxy))
            if ends:
                os.kill(child, 9)
            await seeing
            assert moves.moves == ([] if ends else [("enter", 1)])
        finally:
            os.kill(child, 9)
            os.waitpid(child, 0)
        await boost.await_exit(Process(child, -1))
        await until(lambda: not proxy.is_alive())

    asyncio.run(story())
