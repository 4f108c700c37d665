"""Whether a host is ready, said in sentences with remedies; and what a monitor's death has left, put right."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest

from hawse.cli import doctor
from hawse.cli.log import Log
from hawse.cli.settings import Settings
from hawse.config import Config, ImageFiles, Vm
from hawse.doctor import host as checks
from hawse.doctor import machine
from hawse.doctor.check import MISSING, OK, WARNING, Finding, is_ready
from hawse.sandbox.state import RUNNING, Store
from hawse.vfio import bindings
from hawse.vfio.bindings import Record
from tests.support.sysfs import FakeSysfs

Prepare = Callable[[FakeSysfs], object]


def vfio_is_there(host: FakeSysfs) -> None:
    host.write("dev/vfio/vfio", "")
    host.driver("vfio-pci")


def nothing(_host: FakeSysfs) -> None:
    """A host as bare as can be."""


def unsafe(host: FakeSysfs) -> None:
    host.write("sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", "Y\n")


def unit(ecap: str) -> Prepare:
    return lambda host: host.write("sys/class/iommu/dmar0/intel-iommu/ecap", ecap)


def groups(driver: str) -> Prepare:
    return lambda host: host.function("0000:3b:00.0", group=7, driver=driver)


@pytest.mark.parametrize(
    ("check", "prepare", "verdict", "words"),
    [
        (checks.iommu, nothing, MISSING, "off, or there is none"),
        (checks.iommu, groups("igb"), OK, "on: 1 groups"),
        (checks.interrupts, nothing, OK, "of no matter"),
        (checks.interrupts, groups("igb"), WARNING, "does not tell"),
        (checks.interrupts, unsafe, WARNING, "any interrupt"),
        (checks.interrupts, unit("f00f5a"), OK, "all 1 IOMMUs can"),
        (checks.interrupts, unit("f00f52"), WARNING, "not all"),
        (checks.interrupts, unit("nonsense"), OK, "of no matter"),
        (checks.vfio, nothing, MISSING, "/dev/vfio/vfio is not there"),
        (checks.vfio, lambda host: host.write("dev/vfio/vfio", ""), MISSING, "vfio-pci is not loaded"),
        (checks.vfio, vfio_is_there, OK, "are there"),
        (checks.groups, groups("igb"), WARNING, "none of 1"),
        (checks.groups, groups("vfio-pci"), OK, "1 of 1 can be passed now: 7"),
        (checks.hugepages, nothing, OK, "none are needed"),
    ],
)  # fmt: skip
def test_what_is_found_of_the_host(
    tmp_path: Path, check: Callable[..., Finding], prepare: Prepare, verdict: str, words: str
) -> None:
    host = FakeSysfs(str(tmp_path))
    prepare(host)
    finding = check(root=host.root)
    assert (finding.verdict, words in finding.found) == (verdict, True), finding
    assert finding.verdict != MISSING or finding.remedy


def test_the_mode_without_an_iommu_is_warned_of(tmp_path: Path) -> None:
    host = FakeSysfs(str(tmp_path))
    vfio_is_there(host)
    host.write("sys/module/vfio/parameters/enable_unsafe_noiommu_mode", "Y\n")
    assert checks.vfio(root=host.root).verdict == WARNING


def test_huge_pages_are_counted(tmp_path: Path) -> None:
    host = FakeSysfs(str(tmp_path))
    host.write("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "16\n")
    host.write("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "4\n")
    assert checks.hugepages(root=host.root).found == "4 of 16 of 2048kB are free"


@pytest.mark.parametrize(
    ("mib", "verdict", "words"),
    [
        (8, OK, "; a machine takes 4"),
        (16, WARNING, "4 of 16 of 2048kB are free; a machine takes 8 of 2MB"),
        (64, MISSING, "a machine takes 32 of 2MB"),
    ],
)
def test_huge_pages_are_needed_for_machines_that_are_made_of_them(
    tmp_path: Path, mib: int, verdict: str, words: str
) -> None:
    host = FakeSysfs(str(tmp_path))
    for name, number in (("nr", 16), ("free", 6), ("resv", 2)):
        host.write(f"sys/kernel/mm/hugepages/hugepages-2048kB/{name}_hugepages", f"{number}\n")
    finding = checks.hugepages(page_kib=2048, memory_mib=mib, root=host.root)
    assert (finding.verdict, finding.needed) == (verdict, "containers")
    assert words in finding.found
    assert ("vm.nr_hugepages" in finding.remedy) is (verdict != OK)


def test_a_limit_of_locked_memory_has_its_remedy_apart() -> None:
    finding = checks.locked_memory(8 << 20, 0)
    assert finding.verdict == WARNING
    assert finding.remedy.startswith("start the engine with LimitMEMLOCK=infinity")
    assert "[" not in finding.found


def test_what_is_needed_for_containers_alone_is_enough_where_devices_are_emulated() -> None:
    findings = [Finding("QEMU", OK, "", needed="containers"), Finding("IOMMU", MISSING, "", "", needed="devices")]
    assert is_ready(findings, devices=False)
    assert not is_ready(findings, devices=True)
    assert not is_ready([Finding("QEMU", MISSING, "", needed="containers")], devices=False)
    assert is_ready([Finding("acceleration", WARNING, "")], devices=True)


def test_a_machine_without_anything(tmp_path: Path) -> None:
    config = Config(vm=Vm(qemu="/none/qemu"), image=ImageFiles(cache=str(tmp_path / "cache")))
    assert machine.qemu(config).verdict == MISSING
    assert machine.guest_image(config).remedy == "build it with `hawse image build`"
    assert machine.state_directory(str(tmp_path / "a" / "b")).verdict == OK
    (tmp_path / "file").write_text("")
    assert machine.state_directory(str(tmp_path / "file" / "state")).verdict == MISSING


def settings(state: Path, config: Path | None = None) -> Settings:
    return Settings(root=str(state), log=Log(), config_path=str(config) if config else None, debug=False)


def test_what_a_dead_monitor_left_is_found_and_cleared_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = tmp_path / "state"
    for name, status in (("dead", RUNNING), ("ended", "stopped"), ("alive", RUNNING)):
        store = Store(str(state), name)
        store.make()
        store.write({"id": name, "status": status, "pid": 0, "pidStart": 0, "monitorPid": 0})
        (Path(store.path) / "lock").touch()
    lock = Store(str(state), "alive").lock()
    finding, left = machine.left_over(str(state))
    assert (left, finding.verdict) == (["dead"], WARNING)
    config = tmp_path / "config.toml"
    config.write_text("[vm]\nqemu = '/none'\n[emulated]\n5 = ['edu']\n")
    assert doctor.run(Namespace(json=False, repair=True), settings(state, config)) == 1
    said = capsys.readouterr().out
    assert said.startswith("deleted what was left of the sandbox dead\n")
    assert said.endswith("\nnot ready\n")
    assert sorted(os.listdir(state)) == ["alive", "ended"]
    os.close(lock)


def test_functions_bound_for_a_sandbox_that_is_gone_are_found(tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    directory = bindings.directory_of(state)
    for owner in ("gone", "there", ""):
        address = f"0000:3b:00.{len(owner)}"
        bindings.write(directory, Record(address, "e1000e", "", "vfio-pci", owner))
    Store(state, "there").make()
    finding, records = machine.left_bound(state)
    assert [record.owner for record in records] == ["gone"]
    assert "0000:3b:00.4" in finding.found
    Path(f"{directory}/0000:3b:00.4.json").write_text("{")
    assert "is damaged" in machine.left_bound(state)[0].found


def test_a_wrong_configuration_is_a_finding_and_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.toml"
    config.write_text("[vm]\nmemory = 1\n")
    assert doctor.run(Namespace(json=True, repair=False), settings(tmp_path / "state", config)) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["ready"] is False
    assert said["checks"][0]["name"] == "configuration"
    assert "unknown field `memory`" in said["checks"][0]["found"]
