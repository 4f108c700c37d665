"""The accelerator: KVM is used only if a guest has run with it; probed once for each QEMU and guest image."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from hawse.errors import HostError
from hawse.link.agreed import PROBE, PROBED
from hawse.vm import acceleration
from hawse.vm.acceleration import Accel
from tests.support.scripts import write_program

REFUSED = "a guest does not run with KVM here (often nested virtualization)"
SPEAKS = f"echo early; echo '{PROBED}'; exec sleep 1000"
#: What QEMU prints where KVM cannot emulate an instruction of the guest. It stops the guest and does not exit.
STOPS = r"""echo '[    0.000000] Linux version 6.1.0'
printf 'KVM internal error. Suberror: 1\nextra data[0]: 0x1\nemulation failure\n' >&2
printf 'RAX=ffff888004840040 RBX=0000000000000000\nCode=24 5b 80\n' >&2
exec sleep 1000
"""
#: The same before the guest is in 64-bit mode.
STOPS_EARLY = "printf 'KVM: entry failed, hardware error 0x80000021\\nEAX=00000000 EBX=0\\n' >&2; exec sleep 1000"


@dataclass
class Machine:
    """A fake QEMU and a guest image; ``device`` is a file that replaces /dev/kvm."""

    directory: str

    def __post_init__(self) -> None:
        names = ("qemu", "vmlinux", "initrd.cpio", "kvm")
        self.qemu, self.kernel, self.initrd, self.device = (f"{self.directory}/{name}" for name in names)
        Path(self.kernel).write_text("kernel")
        Path(self.initrd).write_text("initrd")
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
            requested, qemu=self.qemu, kernel=self.kernel, initrd=self.initrd, directory=f"{self.directory}/cache",
            device=self.device, seconds=seconds,
        )  # fmt: skip


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(str(tmp_path))


def test_report_of_the_first_program_proves_that_kvm_works(machine: Machine) -> None:
    assert machine.choose() == Accel("kvm", "a guest ran", fresh=True)
    [call] = machine.calls()
    assert "-machine q35,accel=kvm,kernel-irqchip=split" in call
    assert f"-kernel {machine.kernel} -initrd {machine.initrd} " in call
    assert call.endswith(f" rdinit=/init -- {PROBE}")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("echo first >&2; echo 'kvm: no such register' >&2; exit 1", f"{REFUSED}: kvm: no such register"),
        ("printf '%5000s\\n' x >&2; echo last >&2; exit 1", f"{REFUSED}: last"),
        (STOPS, f"{REFUSED}: KVM internal error. Suberror: 1"),
        (STOPS_EARLY, f"{REFUSED}: KVM: entry failed, hardware error 0x80000021"),
        (
            "echo Linux; echo 'hawse agent'",
            "the guest's first program did not run within 30 s; the console ends with: hawse agent",
        ),
        (
            "head -c 100000 /dev/zero | tr '\\0' x",
            f"the guest's first program did not run within 30 s; the console ends with: {'x' * 200}",
        ),
        ("exit 1", "the guest kernel printed nothing within 30 s"),
        (f"echo '{PROBED}' >&2; exit 1", f"{REFUSED}: {PROBED}"),
    ],
)
def test_guest_that_does_not_report_falls_back_to_tcg(machine: Machine, body: str, reason: str) -> None:
    machine.install(body)
    assert machine.choose() == Accel("tcg", reason, fresh=True)
    with pytest.raises(HostError) as caught:
        machine.choose("kvm")
    assert caught.value.message == f'vm.accel = "kvm", but KVM cannot be used: {reason}'
    assert "QEMU does not consider a security boundary" in caught.value.hint


def test_report_is_read_in_pieces_after_other_output(machine: Machine) -> None:
    first, second, third = PROBED[:5], PROBED[5:9], PROBED[9:]
    pieces = f"printf '{first}'; sleep 0.05; printf '{second}'; sleep 0.05; printf '{third}'"
    machine.install(f"head -c 100000 /dev/zero; echo warning >&2; {pieces}; exec sleep 1000")
    assert machine.choose().name == "kvm"


def test_guest_that_hangs_is_killed_after_the_timeout(machine: Machine) -> None:
    """The guest would report later; QEMU is killed before that."""
    machine.install(f"sleep 3; echo '{PROBED}'")
    assert machine.choose(seconds=0.2) == Accel("tcg", "the guest kernel printed nothing within 0.2 s", fresh=True)


def test_guest_that_prints_without_end_is_killed_after_the_timeout(machine: Machine) -> None:
    machine.install("exec yes")
    reason = "the guest's first program did not run within 1 s; the console ends with: y"
    assert machine.choose(seconds=1) == Accel("tcg", reason, fresh=True)


def test_qemu_that_cannot_be_executed_falls_back_to_tcg(machine: Machine) -> None:
    os.chmod(machine.qemu, 0o644)
    assert machine.choose() == Accel("tcg", f"{machine.qemu}: Permission denied", fresh=True)


def test_probe_result_is_cached_for_the_qemu_and_the_image(machine: Machine) -> None:
    machine.choose()
    assert machine.choose("kvm") == Accel("kvm", "a guest ran")
    assert len(machine.calls()) == 1
    Path(machine.kernel).write_text("another kernel")
    assert machine.choose().fresh
    Path(machine.initrd).write_text("another initrd")
    assert machine.choose().fresh
    machine.install(f"exit 1 # another {SPEAKS}")
    assert machine.choose().name == "tcg"
    assert len(machine.calls()) == 4
    os.chmod(machine.device, 0o600)
    assert machine.choose().fresh, "access to the device has changed"


def test_starts_at_the_same_time_probe_once(machine: Machine) -> None:
    machine.choose()
    Path(machine.kernel).write_text("another kernel")
    machine.install(f"sleep 0.2; {SPEAKS}")
    with ThreadPoolExecutor() as pool:
        chosen = [starting.result() for starting in [pool.submit(machine.choose) for _ in range(4)]]
    assert {accel.name for accel in chosen} == {"kvm"}
    assert len(machine.calls()) == 2


def test_probe_takes_a_minute_at_most(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines end a creation that takes too long, and `vm.boot_seconds` may be an hour."""
    monkeypatch.setattr(acceleration, "_MOST_SECONDS", 0.2)
    machine.install("exec sleep 1000")
    assert machine.choose(seconds=3600).reason == "the guest kernel printed nothing within 0.2 s"


def test_missing_device_node_falls_back_to_tcg(machine: Machine) -> None:
    os.unlink(machine.device)
    assert machine.choose() == Accel("tcg", f"{machine.device}: No such file or directory")
    with pytest.raises(HostError, match=r"but KVM cannot be used: \S+/kvm: No such file"):
        machine.choose("kvm")
    assert machine.calls() == []


def test_no_probe_if_tcg_is_configured(machine: Machine) -> None:
    assert machine.choose("tcg") == Accel("tcg", 'vm.accel = "tcg"')
    assert machine.calls() == []
