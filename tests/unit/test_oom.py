"""Reporting a guest's OOM kill in a cgroup of the host: where this is possible, and the order of reports."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hawse.host.cgroup.oom import unfit
from hawse.host.cgroup.sandbox_cgroup import HostCgroup
from hawse.link.streams import STDIO
from hawse.monitor.agent.calls import Exec
from hawse.monitor.processes.process_table import Processes
from hawse.oci.limits.cgroups import CgroupPlan
from tests.support import virtual_time
from tests.support.async_wait import until


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"memory.events": "", "cgroup.type": "domain\n"}, ""),
        ({"memory.events": "", "cgroup.type": "domain threaded\n"}, "it is not a domain cgroup"),
        ({"memory.events": "", "cgroup.type": "domain\n", "below/cgroup.type": ""}, "it has children"),
        ({"cgroup.type": "domain\n"}, "it has no memory controller of version 2"),
        ({"memory.oom_control": "", "memory.limit_in_bytes": ""}, "it has no memory controller of version 2"),
    ],
)
def test_cgroup_that_cannot_record_an_oom_kill_is_not_changed(
    tmp_path: Path, files: dict[str, str], reason: str
) -> None:
    cgroup, state = tmp_path / "cgroup", tmp_path / "state"
    state.mkdir()
    (state / "cgroups").write_text(f"{cgroup}\n{tmp_path}/gone\n")
    for name, text in files.items():
        (cgroup / name).parent.mkdir(parents=True, exist_ok=True)
        (cgroup / name).write_text(text)
    assert unfit(str(cgroup)) == reason
    before = sorted(cgroup.rglob("*"))
    if reason:
        HostCgroup(CgroupPlan(path="/c1"), str(state)).record_oom()
        assert sorted(cgroup.rglob("*")) == before


class Link:
    """As much of it as the test needs."""

    on_exit: Any = None

    def route(self, _number: int, _proxy: object) -> None: ...
    def forget(self, _number: int) -> None: ...
    async def call(self, *_: object, **__: object) -> None: ...


class Proxy:
    """A proxy that records its exit code."""

    size = None
    directions = STDIO

    def __init__(self, reports: list[str]) -> None:
        self._said = reports

    async def serve(self, *_: object, **__: object) -> None: ...

    def exit(self, code: int) -> None:
        self._said.append(f"exit {code}")

    async def closed(self) -> None: ...


def exec_call(container: str, process: int, descriptors: list[str]) -> Exec:
    return Exec(container=container, process=process, descriptors=descriptors, spec={})


@pytest.mark.parametrize("fails", [False, True])
def test_oom_kill_is_reported_before_the_exit(fails: bool) -> None:
    async def live() -> list[str]:
        reports: list[str] = []
        link, processes, gate = Link(), Processes(seconds=1), asyncio.Event()
        anything: Any = link
        processes.begin(anything)
        proxies: list[Any] = [Proxy(reports), Proxy(reports)]
        for name, proxy in zip(("c1", "c2"), proxies, strict=True):
            await processes.launch(name, proxy, partial(exec_call, name), ended=lambda: reports.append("ended"))

        async def record() -> None:
            await gate.wait()
            reports.append("recorded")
            if fails:
                raise OSError

        processes.hold("c1", record())
        link.on_exit(1, 137)
        link.on_exit(2, 3)
        assert reports == ["ended", "exit 3"], "the end of another container does not wait"
        gate.set()
        await until(lambda: len(reports) == 5)
        return reports[2:]

    assert virtual_time.run(live()) == ["recorded", "ended", "exit 137"]
