"""The findings and remedies of `hawse doctor`, and the repair after the death of a monitor."""

from __future__ import annotations

import json
import os
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec
import pytest

from hawse.cli.own import doctor
from hawse.cli.settings import Settings
from hawse.config import Config, ImageFiles, Templates, Vm
from hawse.doctor import host as checks
from hawse.doctor import requirements
from hawse.doctor.check import (
    CONTAINERS_ONLY,
    MISSING,
    NOT_READY,
    OK,
    READY,
    WARNING,
    Finding,
    readiness,
    without_devices,
)
from hawse.log import Log
from hawse.state import sockets
from hawse.state.store import PAUSED, RUNNING, Store
from hawse.vfio.bind import records as bindings
from hawse.vfio.bind.records import Record
from hawse.vfio.obstacles import Accepted
from tests.support.sysfs import FakeSysfs
from tests.support.vfio_host import BEFORE, A, B, C, Host

Prepare = Callable[[FakeSysfs], object]


def load_vfio(host: FakeSysfs) -> None:
    host.write("dev/vfio/vfio", "")
    host.driver("vfio-pci")


def nothing(_host: FakeSysfs) -> None:
    """A host with nothing in /sys and /dev."""


def unsafe(module: str, *chips: str) -> Prepare:
    """A host with groups and these interrupt controllers, where a module passes devices without remapping."""

    def prepare(host: FakeSysfs) -> None:
        interrupts("", *chips)(host)
        host.write(f"sys/module/{module}/parameters/allow_unsafe_interrupts", "Y\n")

    return prepare


def groups(driver: str) -> Prepare:
    def prepare(host: FakeSysfs) -> None:
        host.function("0000:3b:00.0", group=7, driver=driver)
        if driver == "vfio-pci":
            host.node(7, 511, 0)

    return prepare


def interrupts(ecap: str = "", *chips: str) -> Prepare:
    """A host with groups and with this IOMMU and these interrupt controllers in sysfs."""

    def prepare(host: FakeSysfs) -> None:
        groups("igb")(host)
        if ecap:
            host.write("sys/class/iommu/dmar0/intel-iommu/ecap", ecap)
        for number, chip in enumerate(chips):
            host.write(f"sys/kernel/irq/{number}/chip_name", f"{chip}\n")

    return prepare


def without_an_iommu(host: FakeSysfs) -> None:
    """A host with VFIO's no-IOMMU mode, which creates a group."""
    load_vfio(host)
    groups("vfio-pci")(host)
    host.write("sys/module/vfio/parameters/enable_unsafe_noiommu_mode", "Y\n")
    host.write("sys/kernel/iommu_groups/7/name", "vfio-noiommu\n")


def mappings(limit: int) -> Prepare:
    """A host whose kernel has this limit of DMA mappings."""

    def prepare(host: FakeSysfs) -> None:
        groups("vfio-pci")(host)
        host.write("sys/module/vfio_iommu_type1/parameters/dma_entry_limit", f"{limit}\n")

    return prepare


def iommu_of(capabilities: str) -> Prepare:
    """A host with groups behind an Intel IOMMU with this capability register."""

    def prepare(host: FakeSysfs) -> None:
        groups("vfio-pci")(host)
        host.write("sys/class/iommu/dmar0/intel-iommu/cap", f"{capabilities}\n")

    return prepare


def without_a_reset(host: FakeSysfs) -> None:
    """A group that nothing can reset."""
    host.function("0000:3b:00.0", group=7, resets="none")
    host.node(7, 511, 0)


HOSTS: list[tuple[Callable[..., Finding], Prepare, str, str]] = [
    (checks.iommu, nothing, MISSING, "off or missing"),
    (checks.iommu, without_an_iommu, MISSING, "off or missing"),
    (checks.iommu, groups("igb"), OK, "on: 1 group"),
    (checks.interrupts, nothing, OK, "irrelevant"),
    (checks.interrupts, without_an_iommu, OK, "irrelevant"),
    (checks.interrupts, unsafe("vfio_iommu_type1", "IO-APIC"), MISSING, "off, and the module vfio_iommu_type1 allows"),
    (checks.interrupts, unsafe("iommufd", "IO-APIC"), MISSING, "off, and the module iommufd allows unsafe interrupts"),
    (checks.interrupts, unsafe("iommufd"), MISSING, "not show whether it is on, and the module iommufd allows"),
    (
        checks.interrupts,
        unsafe("iommufd", "IR-IO-APIC"),
        OK,
        "on; allow_unsafe_interrupts of the module iommufd has no",
    ),
    (partial(checks.interrupts, accepted=True), unsafe("iommufd", "IO-APIC"), WARNING, "may raise any interrupt"),
    (checks.interrupts, interrupts("f00f5a", "IR-IO-APIC", "DMAR-MSI"), OK, "on"),
    (checks.interrupts, interrupts("", "PCI-MSIX-0000:00:02.0", "vIR-PCI-MSI-0000:00:03.0"), OK, "on"),
    (checks.interrupts, interrupts("f00f5a", "IO-APIC", "PCI-MSI-0000:00:02.0"), MISSING, "off: VFIO refuses"),
    (
        checks.interrupts,
        interrupts("f00f52", "IO-APIC"),
        MISSING,
        "off, because not all of the IOMMUs support it: VFIO refuses",
    ),
    (checks.interrupts, interrupts("f00f52"), MISSING, "not all"),
    (checks.interrupts, interrupts("f00f5a"), OK, "all 1 IOMMUs support it; sysfs does not show whether it is on"),
    (checks.interrupts, interrupts("nonsense", "GICv3"), WARNING, "sysfs does not show"),
    (checks.vfio, nothing, MISSING, "/dev/vfio/vfio does not exist"),
    (checks.vfio, lambda host: host.write("dev/vfio/vfio", ""), MISSING, "vfio-pci is not loaded"),
    (checks.vfio, load_vfio, OK, "available: /dev/vfio/vfio, vfio-pci"),
    (checks.vfio, without_an_iommu, WARNING, "its no-IOMMU mode is on"),
    (checks.groups, nothing, OK, "this host has none"),
    (checks.groups, groups("igb"), WARNING, "none of 1"),
    (checks.groups, without_an_iommu, WARNING, "none of 1"),
    (checks.groups, groups("vfio-pci"), OK, "1 of 1 can be passed now: 7"),
    (checks.groups, without_a_reset, WARNING, "none of 1"),
    (partial(checks.groups, accepted=Accepted(unresettable=True)), without_a_reset, OK, "1 of 1 can be passed now: 7"),
    (checks.hugepages, nothing, OK, "none are needed"),
    (lambda root: checks.hugepages(page_kib=2048, memory_mib=64, root=root), nothing, MISSING, "a VM needs 32"),
    (partial(checks.dma_mappings, 1024), nothing, OK, "irrelevant without an IOMMU"),
    (partial(checks.dma_mappings, 1024), groups("vfio-pci"), OK, "vfio_iommu_type1 is not loaded"),
    (partial(checks.dma_mappings, 1024), mappings(1), OK, "hawse raises dma_entry_limit"),
    (partial(checks.dma_mappings, 1024), mappings(65535), OK, "65535 pages for each device; hawse raises"),
    (partial(checks.dma_mappings, 1024), mappings(10**7), OK, "10000000 pages for each device"),
    (checks.dma_addresses, nothing, OK, "no IOMMU limits them"),
    (checks.dma_addresses, iommu_of("8d2078c106f0466"), OK, "48 bits"),
    (checks.dma_addresses, iommu_of("1c0000c40660462"), WARNING, "an IOVA of 2^39 or above fails"),
    (partial(checks.locked_memory, 8 << 20, 0, confined=True), nothing, OK, "irrelevant without an IOMMU"),
    (partial(checks.locked_memory, 8 << 20, 0, confined=True), without_an_iommu, OK, "irrelevant without an IOMMU"),
    (partial(checks.locked_memory, 8 << 20, 0, confined=True), groups("igb"), WARNING, "maps more than 8192 KiB"),
    (partial(checks.locked_memory, -1, 0, confined=True), groups("igb"), OK, "no limit"),
]


@pytest.mark.parametrize(("check", "prepare", "verdict", "words"), HOSTS)
def test_findings_about_the_host(
    tmp_path: Path, check: Callable[..., Finding], prepare: Prepare, verdict: str, words: str
) -> None:
    host = FakeSysfs(str(tmp_path))
    prepare(host)
    finding = check(root=host.root)
    assert (finding.verdict, words in finding.found) == (verdict, True), finding


NEEDED = (
    "intel-iommu", "pcie-root-port", "pcie-pci-bridge", "virtio-serial-pci", "virtserialport", "virtio-rng-pci",
)  # fmt: skip


def qemu(*devices: str, objects: Sequence[str] = ()) -> Callable[[Path], Config]:
    """A configuration whose QEMU reports these devices and objects; without devices, QEMU dies at its start."""

    def prepare(directory: Path) -> Config:
        program = directory / "qemu"
        replies: list[object] = [
            {}, {"qemu": {"major": 9, "minor": 0, "micro": 1}}, [{"name": name} for name in devices], [],
            [{"name": name} for name in objects], {}, [],
        ]  # fmt: skip
        replies_text = "\n".join(json.dumps({"return": reply}) for reply in replies)
        program.write_text(f"#!/bin/sh\ncat <<'END'\n{replies_text}\nEND\n" if devices else "#!/bin/sh\nexit 1\n")
        program.chmod(0o755)
        (directory / "virtiofsd").write_text("#!/bin/sh\n")
        (directory / "virtiofsd").chmod(0o755)
        cache = ImageFiles(cache=str(directory / "cache"))
        return Config(vm=Vm(qemu=str(program), virtiofsd=str(directory / "virtiofsd")), image=cache)

    return prepare


def absent(directory: Path) -> Config:
    """A configuration whose files are all missing."""
    files = ImageFiles(cache=str(directory / "cache"), kernel="/none/kernel", modules="/none")
    return Config(vm=Vm(qemu="/none/qemu", virtiofsd="/none/virtiofsd"), image=files)


def others_templates(directory: Path) -> Config:
    """A cache whose templates other users can write."""
    (directory / "cache" / "templates").mkdir(parents=True)
    (directory / "cache" / "templates").chmod(0o777)
    return absent(directory)


def cold(directory: Path) -> Config:
    return msgspec.structs.replace(absent(directory), template=Templates(enabled=False))


MACHINES: list[tuple[Callable[[Config], Finding], Callable[[Path], Config], str, str]] = [
    (requirements.qemu, absent, MISSING, "QEMU cannot be run: /none/qemu"),
    (requirements.qemu, qemu(), MISSING, "exits at startup"),
    *[
        (requirements.qemu, qemu(*{*NEEDED, "vfio-pci"} - {name}), MISSING, f"/qemu 9.0.1 lacks {name}")
        for name in ("virtserialport", "pcie-pci-bridge")
    ],
    (requirements.qemu, qemu(*NEEDED), MISSING, "/qemu 9.0.1 has no vfio-pci"),
    (requirements.qemu, qemu(*NEEDED, "vfio-pci"), OK, "9.0.1; no iommufd: devices are passed by group nodes, not by"),
    (requirements.qemu, qemu(*NEEDED, "vfio-pci"), OK, "; no vhost-user-fs-pci: files are shared by 9p"),
    (
        requirements.qemu, qemu(*NEEDED, "vfio-pci", "vhost-user-fs-pci", objects=["iommufd"]), OK,
        "9.0.1; has iommufd; has vhost-user-fs-pci",
    ),
    (requirements.sharing, absent, MISSING, "/none/virtiofsd cannot be executed"),
    (requirements.sharing, qemu(*NEEDED), WARNING, "9p, which is slower: QEMU has no vhost-user-fs-pci"),
    (requirements.sharing, qemu(*NEEDED), WARNING, "; QEMU 9.0.1 makes no FIFOs and UNIX sockets in shared direct"),
    (requirements.sharing, qemu(*NEEDED, "vhost-user-fs-pci"), OK, "virtiofs, with"),
    (requirements.guest_image, absent, MISSING, "guest image"),
    (requirements.acceleration, absent, WARNING, "guest image"),
    (requirements.templates, cold, WARNING, "disabled"),
    (requirements.templates, others_templates, WARNING, "others may write"),
    (requirements.templates, absent, OK, "0; the first start"),
]  # fmt: skip


@pytest.mark.parametrize(("check", "prepare", "verdict", "words"), MACHINES)
def test_findings_about_the_installation(
    tmp_path: Path, check: Callable[[Config], Finding], prepare: Callable[[Path], Config], verdict: str, words: str
) -> None:
    finding = check(prepare(tmp_path))
    assert (finding.verdict, words in finding.found) == (verdict, True), finding


def test_qemu_without_vfio_is_enough_for_emulated_devices(tmp_path: Path) -> None:
    finding = requirements.qemu(qemu(*NEEDED)(tmp_path))
    assert readiness([finding], emulated=True).status == READY
    assert readiness([finding], emulated=False).status == CONTAINERS_ONLY


def test_every_problem_has_a_remedy(tmp_path: Path) -> None:
    findings = []
    for number, (check, prepare, _, _) in enumerate(HOSTS):
        host = FakeSysfs(str(tmp_path / f"host{number}"))
        prepare(host)
        findings.append(check(root=host.root))
    for number, (look, configure, _, _) in enumerate(MACHINES):
        directory = tmp_path / f"machine{number}"
        directory.mkdir()
        findings.append(look(configure(directory)))
    (tmp_path / "file").write_text("")
    findings.append(requirements.state_directory(str(tmp_path / "file" / "state")))
    findings += leave_behind(tmp_path / "state")
    (tmp_path / "damaged.bindings").mkdir()
    (tmp_path / "damaged.bindings" / f"{A}.json").write_text("{")
    (tmp_path / "unread.bindings").symlink_to("unread.bindings")
    findings += [requirements.left_bound(str(tmp_path / name))[0] for name in ("damaged", "unread")]
    unwell = [finding for finding in findings if finding.verdict in (WARNING, MISSING)]
    assert len(unwell) > 20
    assert [finding for finding in unwell if not finding.remedy] == []


def test_huge_pages_are_counted(tmp_path: Path) -> None:
    host = FakeSysfs(str(tmp_path))
    host.write("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "16\n")
    host.write("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "4\n")
    assert checks.hugepages(root=host.root).found == "4 of 16 of 2048kB are free"


@pytest.mark.parametrize(
    ("mib", "verdict", "words"),
    [
        (8, OK, "; a VM needs 4"),
        (16, WARNING, "4 of 16 of 2048kB are free; a VM needs 8 of 2MB"),
        (64, MISSING, "a VM needs 32 of 2MB"),
    ],
)
def test_huge_pages_are_needed_if_vms_are_backed_by_them(tmp_path: Path, mib: int, verdict: str, words: str) -> None:
    host = FakeSysfs(str(tmp_path))
    for name, number in (("nr", 16), ("free", 6), ("resv", 2)):
        host.write(f"sys/kernel/mm/hugepages/hugepages-2048kB/{name}_hugepages", f"{number}\n")
    finding = checks.hugepages(page_kib=2048, memory_mib=mib, root=host.root)
    assert (finding.verdict, finding.needed) == (verdict, "containers")
    assert words in finding.found
    assert ("vm.nr_hugepages" in finding.remedy) is (verdict != OK)


def test_remedy_of_the_locked_memory_limit_is_separate(tmp_path: Path) -> None:
    host = FakeSysfs(str(tmp_path))
    groups("igb")(host)
    finding = checks.locked_memory(8 << 20, 0, confined=True, root=host.root)
    assert finding.verdict == WARNING
    assert finding.remedy.startswith("start the engine with LimitMEMLOCK=infinity")
    assert "[" not in finding.found


QEMU_FAILS = Finding("QEMU", MISSING, "QEMU cannot be run: /none", needed="containers")
NO_IOMMU = Finding("IOMMU", MISSING, "off or missing", "enable it", needed="devices")
NO_VFIO = Finding("VFIO", MISSING, "/dev/vfio/vfio does not exist", needed="devices")
FINE = [Finding("QEMU", OK, "", needed="containers"), Finding("acceleration", WARNING, "TCG")]
REASON = "IOMMU: off or missing; VFIO: /dev/vfio/vfio does not exist"


@pytest.mark.parametrize(
    ("findings", "emulated", "status", "sentence"),
    [
        (FINE, False, READY, "ready for containers and for devices of this host"),
        (FINE, True, READY, "ready for containers and for devices of this host"),
        (
            [*FINE, NO_IOMMU, NO_VFIO], False, CONTAINERS_ONLY,
            f"ready for containers; not for devices of this host: {REASON}",
        ),
        (
            [*FINE, NO_IOMMU, NO_VFIO], True, READY,
            f"ready for containers with emulated groups; not for devices of this host: {REASON}",
        ),
        ([QEMU_FAILS, NO_IOMMU], False, NOT_READY, "not ready for containers: QEMU: cannot be run: /none"),
        ([QEMU_FAILS, NO_IOMMU], True, NOT_READY, "not ready for containers: QEMU: cannot be run: /none"),
        ([QEMU_FAILS], False, NOT_READY, "not ready for containers: QEMU: cannot be run: /none"),
    ],
)  # fmt: skip
def test_last_line_and_exit_status_say_what_the_host_is_ready_for(
    findings: list[Finding], emulated: bool, status: int, sentence: str
) -> None:
    ready = readiness(findings, emulated=emulated)
    assert (ready.status, ready.sentence) == (status, sentence)


def test_needs_and_warnings_of_devices_disappear_if_only_emulated_groups_can_be_passed() -> None:
    limit = Finding("locked memory", WARNING, "a program that maps more", "set it", needed="devices")
    tcg, iommu, memory = without_devices([FINE[1], NO_IOMMU, limit])
    assert tcg == FINE[1], "a warning about containers stays"
    assert iommu == Finding("IOMMU", OK, "not needed for emulated groups (off or missing)", needed="devices")
    assert (memory.verdict, memory.remedy) == (OK, "")


def test_installation_without_anything(tmp_path: Path) -> None:
    config = Config(vm=Vm(qemu="/none/qemu"), image=ImageFiles(cache=str(tmp_path / "cache")))
    assert requirements.guest_image(config).remedy == "build it with `hawse image build`"
    assert requirements.state_directory(str(tmp_path / "a" / "b")).verdict == OK
    (tmp_path / "file").write_text("")
    assert requirements.state_directory(str(tmp_path / "file" / "state")).verdict == MISSING


def unfinished(state: Path, name: str, *, age: float) -> Store:
    """The directory, ``age`` seconds old, of a sandbox whose `create` and monitor were killed without a state."""
    store = Store(str(state), name)
    store.make()
    sockets.bind(store.path, "monitor.sock").close()
    (Path(store.path) / "lock").touch()
    os.utime(store.path, (time.time() - age,) * 2)
    return store


def leave_behind(state: Path) -> tuple[Finding, Finding]:
    """The findings about a sandbox that was killed while its functions were bound, and about its function on record."""
    unfinished(state, "killed", age=60)
    bindings.write(bindings.directory_of(str(state)), Record(A, "e1000e", "", "vfio-pci", "killed"))
    return requirements.left_over(str(state))[0], requirements.left_bound(str(state))[0]


def settings(state: Path, config: Path | None = None) -> Settings:
    return Settings(root=str(state), log=Log(), config_path=str(config) if config else None, debug=False)


def test_leftovers_of_a_dead_monitor_are_found_and_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = tmp_path / "state"
    for name, status in (("dead", RUNNING), ("held", PAUSED), ("ended", "stopped"), ("alive", RUNNING)):
        store = Store(str(state), name)
        store.make()
        store.write({"id": name, "status": status, "pid": 0, "pidStart": 0, "monitorPid": 0})
        (Path(store.path) / "lock").touch()
    lock = Store(str(state), "alive").lock()
    finding, left = requirements.left_over(str(state))
    assert (left, finding.verdict) == (["dead", "held"], WARNING)
    config = tmp_path / "config.toml"
    config.write_text("[vm]\nqemu = '/none'\n[emulated]\n5 = ['edu']\n")
    assert doctor.run(Namespace(json=False, repair=True), settings(state, config)) == 1
    output = capsys.readouterr().out
    assert output.startswith("sandbox dead: deleted\nsandbox held: deleted\n")
    assert "\nnot ready for containers: QEMU: cannot be run: /none" in output
    assert sorted(os.listdir(state)) == ["alive", "ended"]
    os.close(lock)


def test_sandbox_killed_before_its_first_state_differs_from_one_being_created(tmp_path: Path) -> None:
    unfinished(tmp_path, "killed", age=60)
    unfinished(tmp_path, "just-bound", age=0)
    beginning = unfinished(tmp_path, "beginning", age=60)
    os.unlink(f"{beginning.path}/monitor.sock")
    listener = sockets.bind(beginning.path, "monitor.sock")
    os.utime(beginning.path, (0, 0))
    locked = unfinished(tmp_path, "locked", age=60)
    lock = locked.lock()
    for name, age in (("empty", 60.0), ("new", 0.0)):
        Store(str(tmp_path), name).make()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    (tmp_path / "a file").write_text("")
    assert requirements.left_over(str(tmp_path))[1] == ["empty", "killed"]
    listener.close()
    os.close(lock)
    assert requirements.left_over(str(tmp_path))[1] == ["beginning", "empty", "killed", "locked"]


def test_repair_restores_drivers_and_deletes_sandboxes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host = Host(str(tmp_path))
    state = tmp_path / "run" / "hawse"
    host.take(A, B, owner="killed")
    host.take(C, owner="gone")
    unfinished(state, "killed", age=60)
    config = tmp_path / "config.toml"
    config.write_text("[vm]\nqemu = '/none'\n")
    repair = Namespace(json=False, repair=True)
    doctor.run(repair, settings(state, config), root=host.root, effects=host.kernel.effects)
    assert capsys.readouterr().out.splitlines()[:4] == [
        f"{A}: bound to its driver e1000e again", f"{B}: bound to its driver igb again",
        f"{C}: bound to its driver e1000e again", "sandbox killed: deleted",
    ]  # fmt: skip
    assert (host.state(), host.records(), os.listdir(state)) == (BEFORE, [], [])


def test_repair_keeps_a_sandbox_whose_function_cannot_be_restored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host = Host(str(tmp_path))
    state = tmp_path / "run" / "hawse"
    host.take(C, owner="killed")
    unfinished(state, "killed", age=60)
    host.kernel.picky = {"e1000e"}
    config = tmp_path / "config.toml"
    config.write_text("[vm]\nqemu = '/none'\n")
    repair = Namespace(json=False, repair=True)
    doctor.run(repair, settings(state, config), root=host.root, effects=host.kernel.effects)
    output = capsys.readouterr().out
    assert output.startswith(f"{C}: e1000e did not bind to it")
    assert "left behind by dead monitors: killed" in output
    assert f"bound for sandboxes that no longer exist: {C}" in output
    host.kernel.picky = set()
    doctor.run(repair, settings(state, config), root=host.root, effects=host.kernel.effects)
    assert (host.state(), host.records(), os.listdir(state)) == (BEFORE, [], [])


def test_functions_bound_for_a_vanished_sandbox_are_found(tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    directory = bindings.directory_of(state)
    host = FakeSysfs(str(tmp_path))
    for owner in ("gone", "alive", ""):
        address = f"0000:3b:00.{len(owner)}"
        host.function(address, group=7)
        bindings.write(directory, Record(address, "e1000e", "", "vfio-pci", owner))
    Store(state, "alive").make()
    finding, records = requirements.left_bound(state, root=host.root)
    assert [record.owner for record in records] == ["gone"]
    assert finding.found == "bound for sandboxes that no longer exist: 0000:3b:00.4"
    unfinished(Path(state), "killed", age=60)
    bindings.write(directory, Record("0000:3b:00.6", "e1000e", "", "vfio-pci", "killed"))
    assert [record.owner for record in requirements.left_bound(state, root=host.root)[1]] == ["gone", "killed"]
    Path(f"{directory}/0000:3b:00.4.json").write_text("{")
    finding = requirements.left_bound(state, root=host.root)[0]
    assert "is damaged" in finding.found
    assert finding.found.endswith("; bound for sandboxes that no longer exist: 0000:3b:00.6"), "nothing hides the other"


@pytest.mark.parametrize(
    ("owner", "expected", "remedy"),
    [
        ("", f"on record, but no longer on this host: {A}", f"`hawse unbind {A}` deletes the record"),
        ("alive", f"bound for the sandbox alive, but no longer on this host: {A}", "`hawse delete alive` deletes"),
        ("gone", f"bound for sandboxes that no longer exist: {A}", "`hawse doctor --repair`"),
    ],
)
def test_record_of_a_function_that_has_vanished_is_a_warning(
    tmp_path: Path, owner: str, expected: str, remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    state = str(tmp_path / "state")
    directory = bindings.directory_of(state)
    Store(state, "alive").make()
    bindings.write(directory, Record(A, "e1000e", "", "vfio-pci", owner))
    finding = requirements.left_bound(state, root=str(tmp_path))[0]
    assert (finding.verdict, finding.found) == (WARNING, expected)
    assert finding.remedy.startswith(remedy)
    config = tmp_path / "config.toml"
    config.write_text("[vm]\nqemu = '/none'\n")
    doctor.run(Namespace(json=False, repair=True), settings(Path(state), config), root=str(tmp_path))
    repaired = owner == "gone"
    assert (f"{A}: no longer on this host; its record is deleted\n" in capsys.readouterr().out) is repaired
    assert (bindings.read_all(directory)[0] == []) is repaired


def test_invalid_configuration_is_a_finding_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.toml"
    config.write_text("[vm]\nmemory = 1\n")
    assert doctor.run(Namespace(json=True, repair=False), settings(tmp_path / "state", config)) == 1
    output = json.loads(capsys.readouterr().out)
    assert output["ready"] is False
    assert output["checks"][0]["name"] == "configuration"
    assert "vm.memory is unknown" in output["checks"][0]["found"]
