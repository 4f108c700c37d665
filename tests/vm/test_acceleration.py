"""What guests run with is found out by running one, once, and said once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hawse.config import Vm
from hawse.vm.acceleration import choose
from hawse.vm.image.store import locate
from tests.support.bundles import make_bundle, write
from tests.support.caches import CACHE
from tests.support.runtime import Runtime
from tests.support.soak import rounds
from tests.support.suites import newer_qemu

pytestmark = pytest.mark.vm

#: Each write has the kernel change its scheduler's code, a static key's places, while another CPU runs through it.
_CHANGES = f"""
(while :; do busybox true; done) &
for i in $(seq {rounds(25, soak=1000)}); do for on in 1 0; do echo $on > /proc/sys/kernel/sched_schedstats; done; done
echo changed
"""
_ADMINISTERS = {kind: ["CAP_SYS_ADMIN"] for kind in ("bounding", "effective", "permitted")}


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
    reason = "a guest does not run with KVM here (often nested virtualization): error: failed to set MSR 0x10a"
    assert (found.name, found.reason, found.fresh) == ("tcg", reason, True)
    [[_, kept]] = json.loads((tmp_path / "accel.json").read_text())
    assert kept == ["tcg", reason]


def test_a_guest_that_is_seen_to_run_leads_to_kvm(tmp_path: Path) -> None:
    qemu = tmp_path / "qemu"
    qemu.write_text("#!/bin/sh\necho '[    0.000000] Linux version 6.1.0'\n")
    qemu.chmod(0o755)
    found = choose("auto", qemu=str(qemu), kernel=str(qemu), directory=str(tmp_path), device="/dev/null")
    assert found.name == "kvm"


@pytest.mark.soak
@pytest.mark.parametrize("find_qemu", [lambda: Vm().qemu, newer_qemu], ids=["configured", "newer"])
def test_cpus_run_on_while_the_kernel_changes_its_own_code(
    runtime: Runtime, tmp_path: Path, find_qemu: Callable[[], str]
) -> None:
    """Debian 12's QEMU loses such changes without KVM where each CPU has a thread: after 60 to 1100 rounds of this."""
    runtime.configure(f'[vm]\ncpus = 2\nqemu = "{find_qemu()}"\n')
    spec = make_bundle(f"{tmp_path}/bundle", ["sh", "-ec", _CHANGES], capabilities=_ADMINISTERS)
    spec["linux"]["readonlyPaths"] = []
    write(f"{tmp_path}/bundle", spec)
    done = runtime("run", "--bundle", f"{tmp_path}/bundle", "changing", seconds=rounds(30, soak=300))
    assert (done.code, done.output) == (0, "changed\n"), done
