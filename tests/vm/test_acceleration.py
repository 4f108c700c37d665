"""What guests run with is found out by running one, once, and said once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hawse.config import Vm
from hawse.vm.accel import choose
from hawse.vm.image import locate
from tests.support.caches import CACHE

pytestmark = pytest.mark.vm


def test_the_probe_is_real_and_its_answer_is_kept(tmp_path: Path) -> None:
    kernel = locate(cache=CACHE).kernel
    found = choose("auto", qemu=Vm().qemu, kernel=kernel, directory=str(tmp_path))
    assert found.name in ("kvm", "tcg")
    assert found.reason
    again = choose("auto", qemu=Vm().qemu, kernel=kernel, directory=str(tmp_path))
    assert (again.name, again.reason, again.fresh) == (found.name, found.reason, False)


def test_a_qemu_that_runs_no_guest_with_kvm_leads_to_software(tmp_path: Path) -> None:
    """A /dev/kvm that opens is no proof: here QEMU says, as it does on some hosts, that a register cannot be set."""
    qemu = tmp_path / "qemu"
    qemu.write_text("#!/bin/sh\necho 'error: failed to set MSR 0x10a' >&2\nkill -ABRT $$\n")
    qemu.chmod(0o755)
    found = choose("auto", qemu=str(qemu), kernel=str(qemu), directory=str(tmp_path), device="/dev/null")
    assert (found.name, found.reason, found.fresh) == ("tcg", "error: failed to set MSR 0x10a", True)
    [[_, kept]] = json.loads((tmp_path / "accel.json").read_text())
    assert kept == ["tcg", "error: failed to set MSR 0x10a"]


def test_a_guest_that_is_seen_to_run_leads_to_kvm(tmp_path: Path) -> None:
    qemu = tmp_path / "qemu"
    qemu.write_text("#!/bin/sh\necho '[    0.000000] Linux version 6.1.0'\n")
    qemu.chmod(0o755)
    found = choose("auto", qemu=str(qemu), kernel=str(qemu), directory=str(tmp_path), device="/dev/null")
    assert found.name == "kvm"
