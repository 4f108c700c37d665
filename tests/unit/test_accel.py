"""The accelerator: KVM is used only if a guest kernel has run with it; probed once for each QEMU and kernel."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from hawse.errors import HostError
from hawse.vm import acceleration
from hawse.vm.acceleration import Accel
from tests.support.scripts import write_program

REFUSED = "a guest does not run with KVM here (often nested virtualization)"
SPEAKS = "echo early; echo 'Linux version 6.1.0'; exec sleep 1000"


@dataclass
class Machine:
    """A fake QEMU and a kernel; ``device`` is a file that replaces /dev/kvm."""

    directory: str

    def __post_init__(self) -> None:
        self.qemu, self.kernel, self.device = (f"{self.directory}/{name}" for name in ("qemu", "vmlinux", "kvm"))
        Path(self.kernel).write_text("kernel")
        Path(self.device).touch()
        self.install(SPEAKS)

    def install(self, body: str) -> None:
        """Install this script as QEMU; it appends its arguments to a file."""
        write_program(self.qemu, f'echo "$@" >>{self.directory}/calls\n{body}')

    def calls(self) -> list[str]:
        path = Path(self.directory, "calls")
        return path.read_text().splitlines() if path.exists() else []

    def choose(self, requested: str = "auto", *, seconds: float = 30) -> Accel:
        return acceleration.choose(
            requested, qemu=self.qemu, kernel=self.kernel, directory=f"{self.directory}/cache", device=self.device,
            seconds=seconds,
        )  # fmt: skip


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(str(tmp_path))


def test_kernel_banner_proves_that_kvm_works(machine: Machine) -> None:
    assert machine.choose() == Accel("kvm", "a guest kernel ran", fresh=True)
    [call] = machine.calls()
    assert "-machine q35,accel=kvm,kernel-irqchip=split" in call
    assert f"-kernel {machine.kernel} " in call


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("echo first >&2; echo 'kvm: no such register' >&2; exit 1", f"{REFUSED}: kvm: no such register"),
        ("printf '%5000s\\n' x >&2; echo last >&2; exit 1", f"{REFUSED}: last"),
        ("echo 'Linux versio'", "the guest kernel printed nothing within 30 s"),
        ("exit 1", "the guest kernel printed nothing within 30 s"),
        ("echo 'Linux version' >&2; exit 1", f"{REFUSED}: Linux version"),
    ],
)
def test_guest_without_banner_falls_back_to_tcg(machine: Machine, body: str, reason: str) -> None:
    machine.install(body)
    assert machine.choose() == Accel("tcg", reason, fresh=True)
    with pytest.raises(HostError) as caught:
        machine.choose("kvm")
    assert caught.value.message == f'vm.accel = "kvm", but KVM cannot be used: {reason}'
    assert "QEMU does not consider a security boundary" in caught.value.hint


def test_banner_is_found_in_pieces_after_other_output(machine: Machine) -> None:
    machine.install(
        "head -c 100000 /dev/zero; printf 'Linux '; sleep 0.05; printf ver; sleep 0.05; printf sion; exec sleep 1000"
    )
    assert machine.choose().name == "kvm"


def test_guest_that_hangs_is_killed_after_the_timeout(machine: Machine) -> None:
    """The guest would print its banner later; QEMU is killed before that."""
    machine.install("sleep 3; echo 'Linux version'")
    assert machine.choose(seconds=0.2) == Accel("tcg", "the guest kernel printed nothing within 0.2 s", fresh=True)


def test_qemu_that_cannot_be_executed_falls_back_to_tcg(machine: Machine) -> None:
    os.chmod(machine.qemu, 0o644)
    assert machine.choose() == Accel("tcg", f"{machine.qemu}: Permission denied", fresh=True)


def test_probe_result_is_cached_for_the_qemu_and_the_kernel(machine: Machine) -> None:
    machine.choose()
    assert machine.choose("kvm") == Accel("kvm", "a guest kernel ran")
    assert len(machine.calls()) == 1
    Path(machine.kernel).write_text("another kernel")
    assert machine.choose().fresh
    machine.install(f"exit 1 # another {SPEAKS}")
    assert machine.choose().name == "tcg"
    assert len(machine.calls()) == 3
    os.chmod(machine.device, 0o600)
    assert machine.choose().fresh, "access to the device has changed"


def test_missing_device_node_falls_back_to_tcg(machine: Machine) -> None:
    os.unlink(machine.device)
    assert machine.choose() == Accel("tcg", f"{machine.device}: No such file or directory")
    with pytest.raises(HostError, match=r"but KVM cannot be used: \S+/kvm: No such file"):
        machine.choose("kvm")
    assert machine.calls() == []


def test_no_probe_if_tcg_is_configured(machine: Machine) -> None:
    assert machine.choose("tcg") == Accel("tcg", 'vm.accel = "tcg"')
    assert machine.calls() == []
