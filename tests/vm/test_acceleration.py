"""The accelerator for guests is determined once, by running a guest, and reported once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hawse.config import Vm
from hawse.link.agreed import PROBED
from hawse.vm.acceleration import Accel, choose
from hawse.vm.image.store import locate
from tests.support.bundles import make_bundle, write
from tests.support.caches import CACHE
from tests.support.runtime import Runtime
from tests.support.soak import rounds
from tests.support.suites import newer_qemu

pytestmark = pytest.mark.vm

#: Each write makes the kernel patch its code (static keys) while another CPU executes it.
_CHANGES = f"""
(while :; do busybox true; done) &
for i in $(seq {rounds(25, soak=1000)}); do for on in 1 0; do echo $on > /proc/sys/kernel/sched_schedstats; done; done
echo changed
"""
_ADMINISTERS = {kind: ["CAP_SYS_ADMIN"] for kind in ("bounding", "effective", "permitted")}


def probe(directory: Path, qemu: str, device: str = "/dev/kvm") -> Accel:
    image = locate(cache=CACHE)
    return choose("auto", qemu=qemu, kernel=image.kernel, initrd=image.initrd, directory=str(directory), device=device)


def test_real_probe_is_cached(tmp_path: Path) -> None:
    choice = probe(tmp_path, Vm().qemu)
    assert choice.name in ("kvm", "tcg")
    assert choice.reason
    again = probe(tmp_path, Vm().qemu)
    assert (again.name, again.reason, again.fresh) == (choice.name, choice.reason, False)


def test_tcg_is_used_if_qemu_cannot_run_a_guest_with_kvm(tmp_path: Path) -> None:
    """A /dev/kvm that can be opened does not suffice: in this test QEMU reports, as on some hosts, that it cannot set a
    register."""
    qemu = tmp_path / "qemu"
    qemu.write_text("#!/bin/sh\necho 'error: failed to set MSR 0x10a' >&2\nkill -ABRT $$\n")
    qemu.chmod(0o755)
    choice = probe(tmp_path, str(qemu), device="/dev/null")
    reason = "a guest does not run with KVM here (often nested virtualization): error: failed to set MSR 0x10a"
    assert (choice.name, choice.reason, choice.fresh) == ("tcg", reason, True)
    [[_, kept]] = json.loads((tmp_path / "accel.json").read_text())
    assert kept == ["tcg", reason]


def test_kvm_is_used_if_a_guest_runs_with_it(tmp_path: Path) -> None:
    qemu = tmp_path / "qemu"
    qemu.write_text(f"#!/bin/sh\necho '{PROBED}'\n")
    qemu.chmod(0o755)
    choice = probe(tmp_path, str(qemu), device="/dev/null")
    assert choice.name == "kvm"


def test_guest_image_reports_to_the_probe(tmp_path: Path) -> None:
    """On a host without working KVM, too: this QEMU emulates the guest instead."""
    qemu = tmp_path / "qemu"
    change = "s/accel=kvm/accel=tcg/; s/^host$/max/"
    words = f'for word; do set -- "$@" "$(echo "$word" | sed "{change}")"; shift; done'
    qemu.write_text(f'#!/bin/sh\n{words}\nexec {Vm().qemu} "$@"\n')
    qemu.chmod(0o755)
    choice = probe(tmp_path, str(qemu), device="/dev/null")
    assert (choice.name, choice.reason) == ("kvm", "a guest ran")


@pytest.mark.soak
@pytest.mark.parametrize("find_qemu", [lambda: Vm().qemu, newer_qemu], ids=["configured", "newer"])
def test_cpus_continue_while_the_kernel_patches_its_code(
    runtime: Runtime, tmp_path: Path, find_qemu: Callable[[], str]
) -> None:
    """Debian 12's QEMU without KVM loses such changes if each CPU has a thread: after 60 to 1100 of these rounds."""
    runtime.configure(f'[vm]\ncpus = 2\nqemu = "{find_qemu()}"\n')
    spec = make_bundle(f"{tmp_path}/bundle", ["sh", "-ec", _CHANGES], capabilities=_ADMINISTERS)
    spec["linux"]["readonlyPaths"] = []
    write(f"{tmp_path}/bundle", spec)
    done = runtime("run", "--bundle", f"{tmp_path}/bundle", "changing", seconds=rounds(30, soak=300))
    assert (done.code, done.output) == (0, "changed\n"), done
