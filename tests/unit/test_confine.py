"""The decision whether QEMU is confined, from the configuration, the share and the privileges of hawse's own
process."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from hawse.config import Config, ImageFiles, Vm
from hawse.doctor import requirements
from hawse.doctor.check import MISSING, OK, WARNING, Finding
from hawse.errors import HostError
from hawse.jail import tree
from hawse.monitor import main as monitor
from hawse.notes import Note, warning
from hawse.plan.model import JailPlan
from hawse.planner.confinement import missing_capabilities, plan_jail
from hawse.state.steps import Steps
from hawse.state.store import Store
from tests.support.plans import machine_plan, sandbox_plan

ALL = 2**41 - 1
MKNOD, SYS_ADMIN = 1 << 27, 1 << 21


@pytest.fixture(autouse=True)
def cached_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "obtain", lambda qemu, *, cache: f"{cache}/jails/of{qemu}")


def status(directory: Path, effective: int) -> str:
    path = directory / "status"
    path.write_text(f"Name:\thawse\nCapEff:\t{effective:016x}\n")
    return str(path)


def config(confine: str, **vm: object) -> Config:
    return Config(vm=msgspec.convert({"confine": confine, "qemu": "/qemu", **vm}, Vm), image=ImageFiles(cache="/cache"))


@pytest.mark.parametrize("confine", ["required", "auto"])
@pytest.mark.parametrize("filters", [True, False])
def test_host_with_all_that_a_jail_needs_confines_qemu(tmp_path: Path, confine: str, filters: bool) -> None:
    plan, notes = plan_jail(config(confine), share="virtiofs", filters=filters, status=status(tmp_path, ALL))
    assert plan == JailPlan(
        tree="/cache/jails/of/qemu", first_user=2130706432, last_user=2130771967, filters=filters,
        required=confine == "required",
    )  # fmt: skip
    assert notes == []


def test_jail_that_is_turned_off_is_not_planned(tmp_path: Path) -> None:
    assert plan_jail(config("off"), share="9p", filters=True, status=status(tmp_path, 0)) == (None, [])


OBSTACLES = [
    (
        "9p",
        ALL,
        "with 9p, QEMU sets the owners of files itself, and must run as root [install the package with virtiofsd]",
    ),
    ("virtiofs", ALL & ~MKNOD, "hawse lacks CAP_MKNOD [grant these capabilities to its service]"),
    (
        "virtiofs", ALL & ~MKNOD & ~SYS_ADMIN,
        "hawse lacks CAP_SYS_ADMIN, CAP_MKNOD [grant these capabilities to its service]",
    ),
    (
        "virtiofs", 0,
        "hawse lacks CAP_CHOWN, CAP_KILL, CAP_SETGID, CAP_SETUID, CAP_SETPCAP, CAP_SYS_CHROOT, CAP_SYS_ADMIN, "
        "CAP_MKNOD [grant these capabilities to its service]",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("share", "effective", "reason"), OBSTACLES)
def test_obstacle_is_named_in_a_refusal_or_a_warning(tmp_path: Path, share: str, effective: int, reason: str) -> None:
    path = status(tmp_path, effective)
    with pytest.raises(HostError) as caught:
        plan_jail(config("required"), share=share, filters=True, status=path)
    assert caught.value.sentence() == f"QEMU cannot be confined, as vm.confine requires: {reason}"
    notes = [warning(f"QEMU is not confined: {reason}")]
    assert plan_jail(config("auto"), share=share, filters=True, status=path) == (None, notes)


def test_configured_9p_has_another_remedy_than_a_missing_virtiofsd(tmp_path: Path) -> None:
    with pytest.raises(HostError) as caught:
        plan_jail(config("required", share="9p"), share="9p", filters=True, status=status(tmp_path, ALL))
    assert caught.value.hint == 'set vm.share = "auto"'


def test_privileges_of_the_own_process_are_checked() -> None:
    assert missing_capabilities("/proc/self/status") == [], "the tests run as root"


@pytest.mark.parametrize(
    ("vm", "verdict", "words"),
    [
        ({"confine": "off"}, WARNING, "disabled: QEMU runs as root"),
        ({"confine": "required"}, OK, "QEMU has only the files of /cache/jails/of/qemu"),
        ({"confine": "auto"}, OK, "and a user id from 2130706432-2130771967"),
        (
            {"confine": "auto", "share": "9p"},
            WARNING,
            "QEMU is not confined: with 9p, QEMU sets the owners of files itself",
        ),
        ({"confine": "required", "share": "9p"}, MISSING, "with 9p, QEMU sets the owners of files itself"),
    ],
)
def test_doctor_says_whether_qemu_can_be_confined(
    monkeypatch: pytest.MonkeyPatch, vm: dict[str, str], verdict: str, words: str
) -> None:
    monkeypatch.setattr(requirements, "sharing", lambda _config: Finding("shared files", OK, "virtiofs"))
    finding = requirements.jail(config(**vm))
    assert finding.verdict == verdict
    assert words in finding.found
    assert finding.remedy or verdict == OK


@pytest.mark.parametrize("required", [True, False])
def test_jail_that_fails_in_the_monitor_is_an_error_only_where_it_is_required(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, required: bool
) -> None:
    """For example if all user ids are in use."""

    def refuse(*_: object, **__: object) -> None:
        raise HostError("all user ids are in use", hint="give more of them")

    monkeypatch.setattr(monitor, "Jail", refuse)
    jail = JailPlan(tree="/tree", first_user=100000, last_user=100000, filters=True, required=required)
    planned = sandbox_plan(machine_plan(jail=jail), bundle=str(tmp_path))
    steps, notes = Steps(f"{tmp_path}/steps", []), list[Note]()
    store = Store(str(tmp_path), "c1")
    if required:
        with pytest.raises(HostError, match="all user ids are in use"):
            monitor._create_jail(planned, store, steps, notes)
    else:
        assert monitor._create_jail(planned, store, steps, notes) is None
        assert notes == [("warning", "QEMU is not confined: all user ids are in use [give more of them]")]
