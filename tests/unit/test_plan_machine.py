"""The machine of a plan: what the configuration and the host's programs decide, and which template it has."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from hawse.errors import HostError
from hawse.planner.machine import plan_machine
from tests.support.ready import DEVICES, Planner, keep_template, make_program, make_qemu


@pytest.fixture
def host(tmp_path: Path) -> Planner:
    return Planner(str(tmp_path))


class TestMachine:
    """What the configuration and the host's programs decide."""

    @pytest.mark.parametrize(
        ("share", "able", "expected"),
        [("auto", True, "virtiofs"), ("virtiofs", True, "virtiofs"), ("9p", True, "9p"), ("auto", False, "9p")],
    )
    def test_files_are_shared_by(self, host: Planner, share: str, able: bool, expected: str) -> None:
        make_qemu(host.qemu, devices=[name for name in DEVICES if able or name != "vhost-user-fs-pci"])
        machine = host.sandbox(host.config(vm=f'share = "{share}"')).machine
        assert machine.shape.share == expected
        assert machine.virtiofsd[:1] == ([host.virtiofsd] if expected == "virtiofs" else [])
        fallback = [text for text in host.said.warnings if text.startswith("vm.share: files are shared by 9p")]
        assert len(fallback) == (share == "auto" and expected == "9p")

    @pytest.mark.parametrize(
        ("version", "share", "warned"),
        [
            ("7.2.0", "9p", True), ("9.2.0", "9p", True), ("9.2.1", "9p", False), ("9.10.0", "9p", False),
            ("10.0.0", "9p", False), ("7.2.0", "auto", False), ("7.2.0", "virtiofs", False),
        ],
    )  # fmt: skip
    def test_qemu_that_makes_no_special_files_is_warned_of(
        self, host: Planner, version: str, share: str, warned: bool
    ) -> None:
        """Only where it is QEMU that makes the files of containers."""
        make_qemu(host.qemu, version=version)
        host.sandbox(host.config(vm=f'share = "{share}"'))
        expected = f"vm.share: files are shared by 9p, and QEMU {version} makes no FIFOs and UNIX sockets in them"
        assert any(text.startswith(expected) for text in host.said.warnings) is warned

    def test_virtiofs_that_is_configured_and_cannot_be(self, host: Planner) -> None:
        make_qemu(host.qemu, devices=[name for name in DEVICES if name != "vhost-user-fs-pci"])
        with pytest.raises(HostError, match="virtiofsd is not installed"):
            host.sandbox(host.config(vm='share = "virtiofs"'))

    @pytest.mark.parametrize(
        ("vm", "boot", "device"), [("", 180, 120), ("boot_seconds = 7\ndevice_seconds = 0.5", 7, 0.5)]
    )
    def test_patience(self, host: Planner, vm: str, boot: float, device: float) -> None:
        """Less than 240 s without KVM, after which Podman gives up without a reason."""
        machine = host.sandbox(host.config(vm=vm)).machine
        assert (machine.boot_seconds, machine.device_seconds) == (boot, device)

    def test_each_start_without_kvm_is_warned_of(self, host: Planner) -> None:
        """QEMU does not consider its TCG a security boundary. The first start tries KVM, the second knows."""
        config = host.config(vm='accel = "auto"')
        for _ in range(2):
            assert host.sandbox(config).machine.shape.accel == "tcg"
            [text] = host.said.warnings
            assert text.startswith(
                "guests run under QEMU's TCG, which QEMU does not consider a security boundary, since "
            )
            assert 'set vm.accel = "kvm" to forbid TCG' in text

    def test_tcg_that_is_configured_is_not_warned_of(self, host: Planner) -> None:
        assert host.sandbox(host.config(vm='accel = "tcg"')).machine.shape.accel == "tcg"
        assert host.said.warnings == []

    def test_without_kvm_a_start_that_requires_it_is_refused(self, host: Planner) -> None:
        with pytest.raises(HostError, match=r'vm\.accel = "kvm", but KVM cannot be used: ') as caught:
            host.sandbox(host.config(vm='accel = "kvm"'))
        assert caught.value.hint.startswith("run on a host whose KVM works")

    @pytest.mark.skipif(not os.path.exists("/dev/kvm"), reason="where there is no KVM nothing is tried")
    def test_guests_that_run_with_kvm_are_not(self, host: Planner) -> None:
        answers = Path(host.qemu).read_text().partition("\n")[2]
        make_program(host.qemu, f"case $* in *accel=kvm*) echo Linux version 6; exit;; esac\n{answers}")
        made = host.sandbox(host.config(vm='accel = "auto"'))
        assert (made.machine.shape.accel, made.machine.boot_seconds, made.machine.device_seconds) == ("kvm", 30, 15)
        assert host.said.warnings == []

    def test_machine_of_the_configuration_alone(self, host: Planner) -> None:
        """As `hawse template build` makes it: the one of most containers."""
        machine, notes = plan_machine(host.load(host.config(vm="memory_mib = 512\ncpus = 3")), [])
        assert (machine.shape.memory_mib, machine.shape.cpus) == (512, 3)
        assert machine.shape.bridges == host.sandbox().machine.shape.bridges
        assert [note.text.partition(" (")[0] for note in notes] == ["acceleration: tcg"]


class TestTemplate:
    """Whether the machine's template is used, made, or neither."""

    def make(self, host: Planner) -> str:
        """The machine's template; its directory."""
        machine = host.sandbox().machine
        assert machine.template is not None
        assert not machine.template.usable
        return keep_template(host.cache, machine.template.digest, machine)

    def test_whole_one_is_used_and_kept_the_longer(self, host: Planner) -> None:
        directory = self.make(host)
        os.utime(f"{directory}/checked", (1, 1))
        found = host.sandbox().machine.template
        assert found is not None
        assert (found.usable, found.cache) == (True, host.cache)
        assert os.stat(f"{directory}/checked").st_mtime > 1
        assert host.said.warnings == []

    @pytest.mark.parametrize(
        ("age", "limit", "usable"), [(23, 24, True), (25, 24, False), (-1, 24, False), (25, 0, True), (25, 26, True)]
    )
    def test_one_that_is_too_old_is_replaced(self, host: Planner, age: int, limit: int, usable: bool) -> None:
        """Sandboxes of one template share kernel addresses. A template of the future has an unknown age."""
        manifest = Path(self.make(host), "manifest.json")
        content = json.loads(manifest.read_text())
        manifest.write_text(json.dumps(content | {"created": time.time() - age * 3600}))
        found = host.sandbox(host.config(more=f"[template]\nmax_age_hours = {limit}")).machine.template
        assert found is not None
        assert found.usable is usable
        assert host.said.warnings == []

    def test_damaged_one_is_made_again(self, host: Planner) -> None:
        directory = self.make(host)
        Path(f"{directory}/state").write_text("other")
        found = host.sandbox().machine.template
        assert found is not None
        assert not found.usable
        [warning] = host.said.warnings
        assert warning.startswith("this start is a cold one: the template ")

    def test_directory_that_others_may_write_to_is_not_used(self, host: Planner) -> None:
        self.make(host)
        os.chmod(f"{host.cache}/templates", 0o777)
        assert host.sandbox().machine.template is None
        assert "others may write" in host.said.warnings[0]

    def test_configuration_turns_them_off(self, host: Planner) -> None:
        assert host.sandbox(host.config(more="[template]\nenabled = false")).machine.template is None
