"""Processes, statistics, limits and OOM kills of one container: the calls to the guest and changes of the host's
cgroup."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from hawse.errors import ConfigError, HostError, StateError, VmError
from hawse.host.cgroup.sandbox_cgroup import HostCgroup
from hawse.monitor.container_state import ContainerState
from hawse.monitor.processes.process_table import Processes
from hawse.monitor.usage import Usage
from hawse.oci.limits.cgroups import CgroupPlan, HostLimits
from tests.support import virtual_time
from tests.support.fake_qmp import FakeLink
from tests.support.groups import plan

RESOURCES = {"memory": {"limit": 64}, "cpu": {"shares": 512}, "devices": [{"allow": True}]}


class Link(FakeLink):
    on_exit: Any = None


class RecordedState(ContainerState):
    """A state that is recorded instead of written: the document, and the time of each write."""

    def __init__(self, status: str = "running") -> None:
        super().__init__(plan().container, cast(Any, None), sandbox="c1")
        self.status = status
        self.written: list[dict[str, Any]] = []
        self.times: list[float] = []

    def write(self) -> None:
        self.written.append(self._document())
        self.times.append(asyncio.get_running_loop().time())


class Container:
    """A container's usage; its cgroup on the host is a directory of plain files."""

    def __init__(
        self,
        directory: Path,
        status: str = "running",
        spec: Any = None,
        limits: HostLimits | None = None,
        cgroup: CgroupPlan | None = None,
        **answers: Any,
    ) -> None:
        self.link = Link({"update": None} | answers)
        self.state = RecordedState(status)
        self.written = self.state.written
        self.directory = directory
        (directory / "cgroup").mkdir()
        (directory / "cgroups").write_text(f"{directory}/cgroup\n")
        for name in ("cpu.weight", "cpuset.cpus", "cpuset.mems"):
            (directory / "cgroup" / name).write_text("")
        processes = Processes(seconds=60)
        processes.begin(cast(Any, self.link))
        spec = {"linux": {"resources": RESOURCES}} if spec is None else spec
        cgroup = cgroup or CgroupPlan(path="/c1", limits=limits or HostLimits(cpus="0-1"))
        planned = msgspec.structs.replace(plan().container, spec=spec, cgroup=cgroup)
        host_cgroup = HostCgroup(planned.cgroup, str(directory))
        self.usage = Usage(
            planned, processes, host_cgroup, self.state, last={"cpu": 7, "node": 0}.__getitem__,
        )  # fmt: skip

    def files(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in (self.directory / "cgroup").iterdir() if path.read_text()}


@pytest.mark.parametrize("status", ["creating", "stopped"])
def test_container_that_does_not_run_is_refused(tmp_path: Path, status: str) -> None:
    async def story() -> None:
        container = Container(tmp_path, status)
        with pytest.raises(StateError, match=f"container not running: c1 is {status}"):
            await container.usage.answer("listing", {})

    virtual_time.run(story())


@pytest.mark.parametrize("status", ["created", "running", "paused"])
def test_listing_and_statistics_are_converted(tmp_path: Path, status: str) -> None:
    async def story() -> None:
        process = {"uid": 0, "pid": 1, "parent": 0, "age": 100, "terminal": "?", "used": 10, "command": "/bin/sh"}
        container = Container(tmp_path, status, listing=[[process]], statistics={"pids.current": "7\n"})
        assert await container.usage.answer("listing", {}) == [(0, 1, 0, 100, "?", 10, "/bin/sh")]
        statistics = await container.usage.answer("statistics", {})
        assert isinstance(statistics, dict)
        assert statistics["pids"] == {"current": 7}
        assert await container.usage.answer("pids", {}) == []
        assert container.link.calls == [("listing", {"container": "c1"}), ("statistics", {"container": "c1"})]
        with pytest.raises(VmError, match="the monitor has no method other"):
            await container.usage.answer("other", {})

    virtual_time.run(story())


def test_update_of_guest_limits_leaves_the_hosts_cgroup(tmp_path: Path) -> None:
    """Only changed values are sent, and unchanged ones are not. The host's CPUs are never sent to the guest."""

    async def story() -> None:
        container = Container(tmp_path)
        assert await container.usage.update({"memory": {"limit": 128}}) == []
        for again in ({"pids": {"limit": 5}}, {"pids": {"limit": 5}, "memory": {"limit": 128}}, {}):
            assert await container.usage.update(again) == []
        first, second = (params["resources"] for _, params in container.link.calls)
        assert first == {"memory": {"limit": 128}}
        assert second == {"pids": {"limit": 5}}
        assert container.files() == {}
        cpu = {"shares": 512, "cpus": "0-1"}
        assert container.written[-1]["limits"] == {"memory": {"limit": 128}, "cpu": cpu, "pids": {"limit": 5}}

    virtual_time.run(story())


def test_update_of_host_limits(tmp_path: Path) -> None:
    async def story() -> None:
        container = Container(tmp_path)
        assert await container.usage.update({"cpu": {"cpus": "2", "shares": 1024}}) == []
        assert container.files() == {"cpuset.cpus": "2", "cpu.weight": "39"}
        assert container.link.calls[-1][1]["resources"]["cpu"] == {"shares": 1024}
        (tmp_path / "cgroup" / "cpuset.cpus").unlink()
        with pytest.raises(HostError, match="'3' is not set"):
            await container.usage.update({"cpu": {"cpus": "3"}})
        assert len(container.link.calls) == 1, "the guest gets no other limits"
        (tmp_path / "cgroup" / "cpu.weight").unlink()
        with pytest.raises(HostError, match="'2' is not set"):
            await container.usage.update({"cpu": {"shares": 2}})

    virtual_time.run(story())


@pytest.mark.parametrize(
    ("cpu", "sentence"),
    [
        ({"cpus": "8"}, "cpu.cpus: '8': this host does not have all of them: its CPUs are 0 to 7"),
        ({"cpus": "0-8"}, "cpu.cpus: '0-8': this host does not have all of them: its CPUs are 0 to 7"),
        ({"mems": "1"}, "cpu.mems: '1': this host does not have all of them: its memory nodes are 0 only"),
        ({"cpus": "some"}, "cpu.cpus: 'some' is not a list of CPUs"),
        ({"mems": "-1"}, "cpu.mems: '-1' is not a list of memory nodes"),
    ],
)
def test_update_refuses_the_cpus_that_create_refuses(tmp_path: Path, cpu: dict[str, str], sentence: str) -> None:
    """Nothing is changed, not even the limits that the update could change."""

    async def story() -> None:
        container = Container(tmp_path)
        with pytest.raises(ConfigError) as caught:
            await container.usage.update({"cpu": {"shares": 1024} | cpu})
        assert caught.value.message == f"update: linux.resources.{sentence}"
        assert caught.value.hint
        assert (container.files(), container.link.calls) == ({}, [])

    virtual_time.run(story())


def test_update_of_cpus_of_a_container_without_a_cgroup_names_the_cause(tmp_path: Path) -> None:
    async def story() -> None:
        container = Container(tmp_path, cgroup=CgroupPlan())
        (tmp_path / "cgroups").unlink()
        with pytest.raises(HostError) as caught:
            await container.usage.update({"cpu": {"cpus": "1"}})
        assert caught.value.sentence() == (
            "linux.resources.cpu.cpus: '1' is not set in the host's cgroup: the container has no cgroup there: "
            "config.json has neither linux.cgroupsPath nor a limit that needs one [set linux.cgroupsPath and create "
            "the container again]"
        )

    virtual_time.run(story())


def test_failed_update_is_not_recorded(tmp_path: Path) -> None:
    async def story() -> None:
        container = Container(tmp_path, update=[VmError("agent: no"), None])
        with pytest.raises(ConfigError):
            await container.usage.update([])
        with pytest.raises(VmError, match="agent: no"):
            await container.usage.update({"memory": {"limit": 128}})
        kept: Any = container.written[-1]["limits"]
        assert kept is None, "`hawse update` calls the monitor"
        await container.usage.update({})
        assert container.link.calls[-1][1]["resources"] == {"memory": {"limit": 64}, "cpu": {"shares": 512}}
        assert (container.state.limits or {})["memory"] == {"limit": 64}

    virtual_time.run(story())


@pytest.mark.parametrize("fails", ["host", "guest"])
def test_update_that_fails_leaves_the_hosts_limits(tmp_path: Path, fails: str) -> None:
    """As under runc. What was not set is not set again; the guest, of which nothing is known then, is asked for all."""

    async def story() -> None:
        container = Container(tmp_path, update=[VmError("agent: no"), None] if fails == "guest" else None)
        (tmp_path / "cgroup" / "cpu.weight").write_text("100")
        limits: dict[str, Any] = {"shares": 1024, "mems": "0"}
        if fails == "host":
            (tmp_path / "cgroup" / "cpuset.mems").unlink()
        with pytest.raises((HostError, VmError)):
            await container.usage.update({"cpu": limits})
        assert container.files()["cpu.weight"] == "100"
        assert container.files().get("cpuset.mems", "").strip() == ""
        assert container.state.limits is None
        (tmp_path / "cgroup" / "cpuset.mems").write_text("")
        await container.usage.update({"cpu": {"shares": 2048}})
        assert container.files()["cpu.weight"] != "100"

    virtual_time.run(story())


def test_hosts_limits_that_cannot_be_set_back_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        container = Container(tmp_path, update=[VmError("agent: no"), None])

        def fail(_self: HostCgroup, _values: object) -> None:
            raise HostError("cpu.weight cannot be set back")

        monkeypatch.setattr(HostCgroup, "restore", fail)
        with pytest.raises(VmError) as caught:
            await container.usage.update({"cpu": {"shares": 1024}})
        assert caught.value.message == "agent: no; and then cpu.weight cannot be set back"
        await container.usage.update({"cpu": {"shares": 512}})
        assert container.files()["cpu.weight"] == "20", "it is not known what the host has"

    virtual_time.run(story())


@pytest.mark.parametrize("spec", [{}, {"linux": {"resources": None}}, {"linux": {"resources": {"cpu": None}}}])
def test_container_without_limits_has_the_hosts(tmp_path: Path, spec: dict[str, Any]) -> None:
    """The specification names no CPUs any more: planning has removed them. Setting the same CPUs again changes
    nothing."""

    async def story() -> None:
        container = Container(tmp_path, spec=spec)
        await container.usage.update({"cpu": {"cpus": "0-1"}})
        assert container.files() == {}
        assert container.link.calls == []

    virtual_time.run(story())


@pytest.mark.parametrize(("seconds", "longest"), [(5.0, 5), (10.0**9, 24 * 3600)])
def test_wait_for_an_oom_kill_is_bounded(tmp_path: Path, seconds: float, longest: float) -> None:
    async def story() -> None:
        container = Container(tmp_path)
        began = asyncio.get_running_loop().time()
        assert await container.usage.answer("await_oom", {"seen": 0, "seconds": seconds}) == 0
        assert longest <= asyncio.get_running_loop().time() - began < longest + 1

    virtual_time.run(story())


def test_oom_kills_are_counted_and_recorded_once(tmp_path: Path) -> None:
    """The agent reports the total. The host's cgroup records one kill, even if several have happened."""
    recorded = []

    class Recording(HostCgroup):
        def record_oom(self) -> None:
            recorded.append(1)

    async def story() -> None:
        container = Container(tmp_path)
        processes = Processes(seconds=1)
        cgroup = Recording(CgroupPlan(path="/c1"), str(tmp_path))
        usage = Usage(plan().container, processes, cgroup, container.state)
        waiting = [asyncio.create_task(usage.answer("await_oom", {"seen": n, "seconds": 50})) for n in (0, 1)]
        await asyncio.sleep(1)
        for kills in (1, 1, 3, 2):
            usage.note_oom(kills)
        assert await asyncio.gather(*waiting) == [1, 3]
        assert [state["oomKills"] for state in container.written] == [1, 3]
        while not recorded:
            await asyncio.sleep(0.01)
        assert await usage.answer("await_oom", {"seen": 3, "seconds": 50}) == 3
        assert recorded == [1]

    virtual_time.run(story())


def test_flood_of_oom_kills_is_reported_once_a_second(tmp_path: Path) -> None:
    """Each report causes a disk write and an event of the engine, and the guest determines their number."""

    async def story() -> None:
        state = RecordedState()
        usage = Usage(plan().container, Processes(seconds=1), HostCgroup(CgroupPlan(), str(tmp_path)), state)
        for kills in range(1, 301):
            usage.note_oom(kills)
            await asyncio.sleep(0.01)
        usage.end()
        counts, times = [document["oomKills"] for document in state.written], state.times
        assert len(counts) >= 4, "in three seconds"
        assert (counts[0], counts[-1], sorted(counts)) == (1, 300, counts)
        assert min(later - earlier for earlier, later in pairwise(times[:-1])) >= 0.999

    virtual_time.run(story())


def test_cgroup_that_cannot_record_an_oom_kill_is_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Failing(HostCgroup):
        def record_oom(self) -> None:
            raise OSError("no room")

    async def story() -> None:
        container = Container(tmp_path)
        cgroup = Failing(CgroupPlan(path="/c1"), str(tmp_path))
        usage = Usage(plan().container, Processes(seconds=1), cgroup, container.state)
        usage.note_oom(1)
        text = ""
        async with asyncio.timeout(60):
            while not text.endswith("\n"):
                await asyncio.sleep(0.01)
                text += capsys.readouterr().err
        assert text == "cannot record an OOM kill in the host's cgroup: no room\n"

    virtual_time.run(story())
