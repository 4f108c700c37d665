"""Lists of the host's CPUs and memory nodes: their syntax, the numbers that the host has, and the CPUs of a pod's
VM."""

from __future__ import annotations

import asyncio
import tracemalloc
from pathlib import Path

import pytest

from hawse.errors import ConfigError, HostError
from hawse.host.cgroup.sandbox_cgroup import HostCgroup
from hawse.linux.topology import last_number
from hawse.monitor.placement import Placement
from hawse.oci.limits.cgroups import CgroupPlan
from hawse.oci.limits.cpusets import check, parse, together, written


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("0", {0}),
        ("7", {7}),
        ("0-3,5", {0, 1, 2, 3, 5}),
        ("5,0-3", {0, 1, 2, 3, 5}),
        ("1,1,1-2", {1, 2}),
        ("0,,2,", {0, 2}),
        ("0 2\n", {0, 2}),
        ("3-3", {3}),
        ("007", {7}),
        ("0-7:1/2", {0, 2, 4, 6}),
        ("0-7:2/4", {0, 1, 4, 5}),
        ("N", {7}),
        ("5-N", {5, 6, 7}),
        ("all", {0, 1, 2, 3, 4, 5, 6, 7}),
    ],
)
def test_lists_are_parsed_as_by_the_kernel(text: str, numbers: set[int]) -> None:
    assert check("linux.resources", "cpus", text, last=7) == numbers


@pytest.mark.parametrize("text", ["", " ", ",", "0-", "-1", "-", "3-1", "0-3-5", "a", "0x1", "1.5", "٣", "0-7:0/2",
                                  "0-7:3/2", "0-7:1/0", "0-7:1", "1" * 30, "0;1"])  # fmt: skip
def test_invalid_list_is_named(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check("linux.resources", "cpus", text, last=7)
    assert caught.value.sentence().endswith("is not a list of CPUs [write it as 0-3,8]")
    assert f"linux.resources.cpu.cpus: {text!r}" in caught.value.sentence()


@pytest.mark.parametrize("text", ["8", "0-8", "1000", "0-4294967295", f"0-{10**19}", "4294967295-4294967295", "7,9"])
def test_numbers_that_the_host_lacks_are_refused_in_a_short_error(text: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError, match="this host does not have all of them: its CPUs are 0 to 7"):
            check("linux.resources", "cpus", text, last=7)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_memory_nodes_are_called_memory_nodes() -> None:
    with pytest.raises(ConfigError, match=r"linux\.resources\.cpu\.mems: '1': .* its memory nodes are 0 only"):
        check("linux.resources", "mems", "1", last=0)


@pytest.mark.parametrize("text", ["0", "0-3", "0-3,8", "1,3,5", ""])
def test_numbers_are_formatted_as_by_the_kernel(text: str) -> None:
    assert written(parse(text, last=9) if text else ()) == text


@pytest.mark.parametrize(
    ("own", "lists", "expected"),
    [
        ("", [], ""),
        ("0-3", [], "0-3"),
        ("", ["1"], "1"),
        ("0", ["1"], "1"),
        ("", ["1", "2", "4"], "1-2,4"),
        ("", ["1-2", "2-3"], "1-3"),
        ("", ["1", ""], ""),
        ("0-3", ["", "1"], "0-3"),
        ("0-3", ["1", "0-1:0/2"], "0-3"),
    ],
)
def test_vm_of_a_pod_may_use_the_cpus_of_its_containers(own: str, lists: list[str], expected: str) -> None:
    """A container without a list may use all CPUs of its sandbox."""
    assert together(own, lists, last=7) == expected


@pytest.mark.parametrize(("text", "last"), [("0-1\n", 1), ("0\n", 0), ("0-63,128-191\n", 191)])
def test_last_number_is_the_maximum_of_the_kernel(tmp_path: Path, text: str, last: int) -> None:
    (tmp_path / "sys/devices/system/node").mkdir(parents=True)
    (tmp_path / "sys/devices/system/node/possible").write_text(text)
    assert last_number("node", root=str(tmp_path)) == last


def test_kernel_without_numa_has_node_0(tmp_path: Path) -> None:
    assert last_number("node", root=str(tmp_path)) == 0
    assert last_number("cpu") >= 0


@pytest.mark.parametrize("version", [1, 2])
def test_cpus_of_a_vm_follow_its_containers(tmp_path: Path, version: int) -> None:
    """Without a list nothing is written. Afterwards the VM may use the CPUs that it could use before."""
    cgroup = tmp_path / "pod" / "c1"
    cgroup.mkdir(parents=True)
    for directory in (cgroup, cgroup.parent):
        (directory / "cpuset.cpus").write_text("0-1")
        (directory / "cpuset.mems").write_text("0")
    if version == 2:
        (cgroup / "cgroup.controllers").write_text("cpuset")
    (tmp_path / "cgroups").write_text(f"{cgroup}\n")
    lists: list[tuple[str, str]] = []
    host = HostCgroup(CgroupPlan(path="/pod/c1"), str(tmp_path))
    placement = Placement(host, lambda: (("", ""), lists), last=lambda _kind: 1)

    def cpuset_files() -> tuple[str, ...]:
        return tuple((cgroup / f"cpuset.{name}").read_text() for name in ("cpus", "mems"))

    async def story() -> None:
        (cgroup / "cpuset.cpus").write_text("as it was")
        lists.append(("", ""))
        assert await placement.update() == []
        assert cpuset_files() == ("as it was", "0")
        lists[0] = ("0", "")
        await placement.update()
        assert cpuset_files()[0].startswith("0")
        lists.append(("1", "0"))
        await placement.update()
        assert cpuset_files()[0].startswith("0-1")
        lists[:] = [("1", "0")]
        (cgroup / "cpuset.mems").write_text("")
        await placement.update()
        assert cpuset_files()[1] == "0"
        lists.clear()
        (cgroup / "cpuset.cpus").write_text("")
        (cgroup / "cpuset.mems").write_text("")
        await placement.update()
        assert cpuset_files() == (("0-1", "0") if version == 1 else ("\n", "\n"))
        (cgroup / "cpuset.cpus").unlink()
        lists.append(("1", ""))
        with pytest.raises(HostError, match=r"linux\.resources\.cpu\.cpus: '1' is not set in the host's cgroup"):
            await placement.update()

    asyncio.run(story())
