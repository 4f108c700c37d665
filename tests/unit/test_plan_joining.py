"""The plan of a container that joins a sandbox whose VM runs already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from hawse.errors import ConfigError, DeviceError
from hawse.plan.capacity import Room
from hawse.plan.model import SandboxPlan
from hawse.vm.ports import MIB, Port
from tests.support.ready import EMULATED, Planner, annotated, limited

COLD = f'[devices]\nplug = "cold"\n{EMULATED}'


@pytest.fixture
def host(tmp_path: Path) -> Planner:
    return Planner(str(tmp_path))


def spare(name: str, bus: int, *, bridge: bool = False) -> Port:
    return Port(name, bus, True, 64 * MIB, 64 * MIB, bridge)


def test_groups_get_different_ports(host: Planner) -> None:
    host.write(annotated({"hawse.devices": "5,7"}))
    room = Room(spares=[spare("port1", 1), spare("port2", 2)], memory_mib=1024)
    container = host.container(room, host.config(more=EMULATED))
    assert [(step.group, step.bus, step.cold) for step in container.plugs] == [(5, "port1", False), (7, "port2", False)]
    assert host.said.warnings == []
    assert not isinstance(container, SandboxPlan)


def test_groups_without_a_port_are_an_error(host: Planner) -> None:
    host.write(annotated({"hawse.devices": "5,7"}))
    with pytest.raises(DeviceError):
        host.container(Room(spares=[spare("port1", 1)]), host.config(more=EMULATED))


def test_group_of_another_container_is_shared(host: Planner) -> None:
    host.write(annotated({"hawse.devices": "5"}))
    first = host.container(Room(spares=[spare("port1", 1)]), host.config(more=EMULATED))
    second = host.container(Room(spares=[], plugs=first.plugs), host.config(more=EMULATED))
    assert second.plugs == [msgspec.structs.replace(first.plugs[0], shared=True)]


@pytest.mark.parametrize(("devices", "warned"), [("5", True), ("", False)])
def test_cold_plugging_is_refused(host: Planner, devices: str, warned: bool) -> None:
    host.write(annotated({"hawse.devices": devices}))
    host.container(Room(spares=[spare("port1", 1)]), host.config(more=COLD))
    assert any("devices.plug is cold" in text for text in host.said.warnings) is warned


@pytest.mark.parametrize("cpu", [{"cpus": "0"}, {"mems": "0"}, {"shares": 2}])
def test_cpus_of_the_host_are_for_its_cgroup(host: Planner, cpu: dict[str, Any]) -> None:
    """The CPUs of the sandbox's cgroup are changed when the container is created."""
    host.write(limited(cpu=cpu))
    container = host.container(Room(spares=[], memory_mib=1024))
    assert (container.cgroup.limits.cpus, container.cgroup.limits.mems) == (cpu.get("cpus", ""), cpu.get("mems", ""))
    assert "cpus" not in container.spec["linux"]["resources"]["cpu"]
    assert host.said.warnings == []


@pytest.mark.parametrize(
    ("cpu", "words"),
    [
        ({"cpus": "3-1"}, "config.json: linux.resources.cpu.cpus: '3-1' is not a list of CPUs"),
        ({"cpus": "0-4294967295"}, "linux.resources.cpu.cpus: '0-4294967295': this host does not have all of them"),
        ({"mems": "0-"}, "linux.resources.cpu.mems: '0-' is not a list of memory nodes"),
        ({"mems": "4096"}, "linux.resources.cpu.mems: '4096': this host does not have all of them"),
    ],
)
def test_lists_of_cpus_are_checked_before_anything_is_started(host: Planner, cpu: dict[str, Any], words: str) -> None:
    host.write(limited(cpu=cpu))
    with pytest.raises(ConfigError) as joined:
        host.container(Room(spares=[], memory_mib=1024))
    with pytest.raises(ConfigError) as first:
        host.sandbox()
    assert words in joined.value.message
    assert words in first.value.message


def test_limit_above_the_memory_of_the_vm_is_refused(host: Planner) -> None:
    host.write(limited(memory={"limit": 300 * MIB}))
    with pytest.raises(ConfigError, match=r"^linux\.resources.memory.limit: 300 MiB are more than the virtual machine"):
        host.container(Room(spares=[], memory_mib=256))
