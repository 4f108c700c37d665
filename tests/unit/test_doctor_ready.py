"""`hawse doctor` on a host with everything that containers need, and with one thing missing at a time."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import pytest

from hawse.cli.own import doctor
from hawse.cli.settings import Settings
from hawse.doctor import host as checks
from hawse.doctor import requirements as machine
from hawse.doctor.check import MISSING, OK, WARNING, Finding
from hawse.link.agreed import PROBED
from hawse.log import Log
from tests.support.command import Command
from tests.support.ready import EMULATED, Planner, keep_template, make_program
from tests.support.sysfs import FakeSysfs

REFUSED = "a guest does not run with KVM here (often nested virtualization)"


@pytest.fixture
def host(tmp_path: Path) -> Planner:
    return Planner(str(tmp_path))


@pytest.fixture
def hawse(host: Planner) -> Iterator[Command]:
    command = Command(host.directory)
    command.configure(host.config(more=EMULATED))
    yield command


def findings(hawse: Command) -> dict[str, dict[str, str]]:
    """The findings by the names of the checks."""
    return {check["name"]: check for check in json.loads(hawse("doctor", "--json").output)["checks"]}


def test_host_with_emulated_groups_is_ready_without_devices(hawse: Command) -> None:
    done = hawse("doctor")
    assert done.code == 0
    lines = done.output.splitlines()
    assert lines[0] == "ok       configuration: can be read"
    assert lines[-2] == ""
    assert lines[-1].startswith("ready for containers ")
    document = json.loads(hawse("doctor", "--json").output)
    assert (document["ready"], document["ready_for"]["containers"]) == (True, True)


@pytest.mark.parametrize(
    ("more", "status", "verdict", "sentence"),
    [
        (EMULATED, 0, OK, "ready for containers with emulated groups; not for devices of this host: IOMMU: off or mis"),
        ("", 2, MISSING, "ready for containers; not for devices of this host: IOMMU: off or missing; VFIO: /dev/vfio/"),
    ],
)
def test_host_without_an_iommu_is_ready_for_containers(
    host: Planner, hawse: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    more: str, status: int, verdict: str, sentence: str,
) -> None:  # fmt: skip
    hawse.configure(host.config(more=more))
    settings = Settings(root=hawse.root, log=Log(), config_path=hawse.config, debug=False)

    def run(*, as_json: bool) -> str:
        assert doctor.run(Namespace(json=as_json, repair=False), settings, root=f"{tmp_path}/none") == status
        return capsys.readouterr().out

    assert run(as_json=False).splitlines()[-1].startswith(sentence)
    document = json.loads(run(as_json=True))
    assert document["ready"] is (status == 0)
    assert document["ready_for"] == {"containers": True, "devices": False}
    checks_by_name = {check["name"]: check for check in document["checks"]}
    for name in ("IOMMU", "VFIO"):
        assert checks_by_name[name]["verdict"] == verdict
        assert checks_by_name[name]["found"].startswith("not needed for emulated groups (") is (verdict == OK)
        assert bool(checks_by_name[name]["remedy"]) is (verdict == MISSING)
    for name in ("locked memory", "DMA mappings", "groups", "interrupt remapping"):
        assert checks_by_name[name]["verdict"] == OK


def test_configured_share_is_reported(host: Planner, hawse: Command) -> None:
    hawse.configure(host.config(vm='share = "9p"\nconfine = "auto"'))
    results = findings(hawse)
    assert results["shared files"]["verdict"] == WARNING
    assert results["shared files"]["found"].startswith('9p, because of vm.share = "9p"')
    assert "with 9p, QEMU sets the owners of files itself" in results["jail"]["found"]


def test_invalid_virtiofsd_is_not_reported_as_a_jail_problem(host: Planner, hawse: Command) -> None:
    hawse.configure(host.config(vm='virtiofsd = "/none/virtiofsd"\nconfine = "auto"'))
    results = findings(hawse)
    assert results["shared files"]["verdict"] == MISSING
    assert (results["jail"]["verdict"], results["jail"]["found"]) == (WARNING, "not checked: see shared files")


def test_host_without_an_image_is_not_ready_and_gets_a_remedy(host: Planner, hawse: Command) -> None:
    for name in os.listdir(f"{host.cache}/images"):
        if name.startswith("current-"):
            os.unlink(f"{host.cache}/images/{name}")
    done = hawse("doctor")
    assert done.code == 1
    lines = done.output.splitlines()
    position = lines.index(f"MISSING  guest image: there is no guest image in {host.cache}")
    assert lines[position + 1] == "         [build it with `hawse image build`]"
    assert lines[-1] == f"not ready for containers: guest image: there is no guest image in {host.cache}"
    assert not any(line.strip() == "[]" for line in lines)


def test_unreadable_configuration_is_a_finding(hawse: Command) -> None:
    hawse.configure("[vm")
    done = hawse("doctor")
    assert done.code == 1
    first, second = done.output.splitlines()[:2]
    assert first.startswith(f"MISSING  configuration: {hawse.config}: ")
    assert second == "         [correct the file]"


def test_findings_of_a_ready_host(host: Planner, hawse: Command) -> None:
    results = findings(hawse)
    assert (results["guest image"]["verdict"], results["guest image"]["found"]) == (OK, f"{host.cache}/images/d1")
    assert (results["acceleration"]["verdict"], results["acceleration"]["found"].endswith(': vm.accel = "tcg"')) == (
        WARNING,
        True,
    )
    assert results["shared files"]["found"] == f"virtiofs, with {host.virtiofsd}"
    assert results["state"]["found"] == hawse.root


@pytest.mark.skipif(not os.path.exists("/dev/kvm"), reason="without KVM nothing is probed")
@pytest.mark.parametrize("works", [True, False])
def test_kvm_finding_is_the_result_of_a_probe(host: Planner, hawse: Command, works: bool) -> None:
    answers = Path(host.qemu).read_text().partition("\n")[2]
    text = PROBED if works else "KVM is broken"
    make_program(host.qemu, f"case $* in *accel=kvm*) echo '{text}'; echo '{text}' >&2; exit;; esac\n{answers}")
    hawse.configure(host.config(vm='accel = "auto"'))
    finding = findings(hawse)["acceleration"]
    assert (finding["verdict"], finding["found"]) == (
        (OK, "KVM (a guest ran)") if works else
        (WARNING, "guests run with QEMU's TCG, which QEMU does not consider a security boundary and which is about "
                  f"twenty times slower than KVM: {REFUSED}: KVM is broken")
    )  # fmt: skip
    if not works:
        hawse.configure(host.config(vm='accel = "kvm"'))
        finding = findings(hawse)["acceleration"]
        assert (finding["verdict"], finding["needed"]) == (MISSING, "containers"), "nothing starts"
        assert finding["found"] == f'vm.accel = "kvm", but KVM cannot be used: {REFUSED}: KVM is broken'


def test_templates_are_counted_and_damaged_ones_named(host: Planner, hawse: Command) -> None:
    machine = host.sandbox().machine
    for digest in ("a" * 64, "b" * 64):
        keep_template(host.cache, digest, machine)
    assert findings(hawse)["templates"]["found"].startswith("2; ")
    Path(f"{host.cache}/templates/{'b' * 64}/manifest.json").write_text("{")
    finding = findings(hawse)["templates"]
    assert (finding["verdict"], finding["found"]) == (WARNING, "damaged: bbbbbbbbbbbb")
    assert finding["remedy"] == "`hawse template remove bbbbbbbbbbbb`"


def test_missing_state_directory_is_checked_by_its_parents(tmp_path: Path) -> None:
    assert machine.state_directory(f"{tmp_path}/a/b").verdict == OK
    program = make_program(f"{tmp_path}/program", "exit 0")
    assert machine.state_directory(f"{program}/b").verdict == MISSING, "it is an executable file, not a directory"


@pytest.mark.parametrize("iommufd", [False, True])
def test_device_file_interface_is_mentioned(tmp_path: Path, iommufd: bool) -> None:
    host = FakeSysfs(str(tmp_path))
    host.write("dev/vfio/vfio", "")
    host.driver("vfio-pci")
    if iommufd:
        host.write("dev/iommu", "")
    finding: Finding = checks.vfio(root=host.root)
    assert finding.found == f"available: /dev/vfio/vfio, vfio-pci{', and /dev/iommu' if iommufd else ''}"


def test_huge_page_sizes_with_odd_names_or_without_pages_are_not_counted(tmp_path: Path) -> None:
    host = FakeSysfs(str(tmp_path))
    host.write("sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages", "0\n")
    host.write("sys/kernel/mm/hugepages/other/nr_hugepages", "5\n")
    assert checks.hugepages(root=host.root).found == "none are reserved on this host, and none are needed"


@pytest.mark.parametrize(("total", "verdict"), [(4, WARNING), (3, MISSING)])
def test_huge_pages_in_use_are_a_warning_if_the_total_is_enough(tmp_path: Path, total: int, verdict: str) -> None:
    """Exactly the number that a VM needs is enough when all of them are free."""
    host = FakeSysfs(str(tmp_path))
    host.write("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", f"{total}\n")
    finding = checks.hugepages(page_kib=2048, memory_mib=8, root=host.root)
    assert (finding.verdict, finding.remedy.split(";")[0]) == (verdict, f"sysctl vm.nr_hugepages={total + 4}")
