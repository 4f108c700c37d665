"""The VM of a plan: the influence of the configuration and of the host's programs, and the VM's template."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from hawse.errors import HostError
from hawse.link.agreed import PROBED
from hawse.planner.vm import plan_machine
from tests.support.ready import DEVICES, Planner, keep_template, make_program, make_qemu


@pytest.fixture
def host(tmp_path: Path) -> Planner:
    return Planner(str(tmp_path))


class TestMachine:
    """The influence of the configuration and of the host's programs."""

    @pytest.mark.parametrize(
        ("share", "able", "expected"),
        [("auto", True, "virtiofs"), ("virtiofs", True, "virtiofs"), ("9p", True, "9p"), ("auto", False, "9p")],
    )
    def test_share_of_the_plan(self, host: Planner, share: str, able: bool, expected: str) -> None:
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
    def test_qemu_that_creates_no_special_files_is_a_warning(
        self, host: Planner, version: str, share: str, warned: bool
    ) -> None:
        """Only if QEMU creates the files of containers."""
        make_qemu(host.qemu, version=version)
        host.sandbox(host.config(vm=f'share = "{share}"'))
        expected = f"vm.share: files are shared by 9p, and QEMU {version} makes no FIFOs and UNIX sockets in them"
        assert any(text.startswith(expected) for text in host.said.warnings) is warned

    def test_configured_virtiofs_that_is_unavailable_is_an_error(self, host: Planner) -> None:
        make_qemu(host.qemu, devices=[name for name in DEVICES if name != "vhost-user-fs-pci"])
        with pytest.raises(HostError, match="virtiofsd is not installed"):
            host.sandbox(host.config(vm='share = "virtiofs"'))

    @pytest.mark.parametrize(
        ("vm", "boot", "device"), [("", 180, 120), ("boot_seconds = 7\ndevice_seconds = 0.5", 7, 0.5)]
    )
    def test_timeouts_without_kvm_and_as_configured(self, host: Planner, vm: str, boot: float, device: float) -> None:
        """Less than 240 s without KVM, after which Podman gives up without a reason."""
        machine = host.sandbox(host.config(vm=vm)).machine
        assert (machine.boot_seconds, machine.device_seconds) == (boot, device)

    def test_each_start_without_kvm_is_a_warning(self, host: Planner) -> None:
        """QEMU does not consider its TCG a security boundary. The first start tries KVM, the second uses the cached
        result."""
        config = host.config(vm='accel = "auto"')
        for _ in range(2):
            assert host.sandbox(config).machine.shape.accel == "tcg"
            [text] = host.said.warnings
            assert text.startswith(
                "guests run under QEMU's TCG, which QEMU does not consider a security boundary, since "
            )
            assert 'set vm.accel = "kvm" to forbid TCG' in text

    def test_configured_tcg_causes_no_warning(self, host: Planner) -> None:
        assert host.sandbox(host.config(vm='accel = "tcg"')).machine.shape.accel == "tcg"
        assert host.said.warnings == []

    def test_without_kvm_a_start_that_requires_it_is_refused(self, host: Planner) -> None:
        with pytest.raises(HostError, match=r'vm\.accel = "kvm", but KVM cannot be used: ') as caught:
            host.sandbox(host.config(vm='accel = "kvm"'))
        assert caught.value.hint.startswith("run on a host whose KVM works")

    @pytest.mark.skipif(not os.path.exists("/dev/kvm"), reason="where there is no KVM nothing is tried")
    def test_vm_uses_kvm_if_a_guest_runs_with_it(self, host: Planner) -> None:
        answers = Path(host.qemu).read_text().partition("\n")[2]
        make_program(host.qemu, f"case $* in *accel=kvm*) echo '{PROBED}'; exit;; esac\n{answers}")
        planned = host.sandbox(host.config(vm='accel = "auto"'))
        assert (planned.machine.shape.accel, planned.machine.boot_seconds, planned.machine.device_seconds) == (
            "kvm",
            30,
            15,
        )
        assert host.said.warnings == []

    def test_vm_without_a_bundle(self, host: Planner) -> None:
        """As `hawse template build` plans it: the VM of most containers."""
        machine, notes = plan_machine(host.load(host.config(vm="memory_mib = 512\ncpus = 3")), [])
        assert (machine.shape.memory_mib, machine.shape.cpus) == (512, 3)
        assert machine.shape.bridges == host.sandbox().machine.shape.bridges
        assert [note.text.partition(" (")[0] for note in notes] == ["acceleration: tcg"]


class TestTemplate:
    """Whether the VM's template is used, created, or neither."""

    def make(self, host: Planner) -> str:
        """The VM's template; returns its directory."""
        machine = host.sandbox().machine
        assert machine.template is not None
        assert not machine.template.usable
        return keep_template(host.cache, machine.template.digest, machine)

    def test_complete_template_is_used_and_kept_longer(self, host: Planner) -> None:
        directory = self.make(host)
        os.utime(f"{directory}/checked", (1, 1))
        template = host.sandbox().machine.template
        assert template is not None
        assert (template.usable, template.cache) == (True, host.cache)
        assert os.stat(f"{directory}/checked").st_mtime > 1
        assert host.said.warnings == []

    @pytest.mark.parametrize(
        ("age", "limit", "usable"), [(23, 24, True), (25, 24, False), (-1, 24, False), (25, 0, True), (25, 26, True)]
    )
    def test_template_that_is_too_old_is_replaced(self, host: Planner, age: int, limit: int, usable: bool) -> None:
        """Sandboxes of one template share kernel addresses. The age of a template from the future is unknown."""
        manifest = Path(self.make(host), "manifest.json")
        content = json.loads(manifest.read_text())
        manifest.write_text(json.dumps(content | {"created": time.time() - age * 3600}))
        template = host.sandbox(host.config(more=f"[template]\nmax_age_hours = {limit}")).machine.template
        assert template is not None
        assert template.usable is usable
        assert host.said.warnings == []

    def test_damaged_template_is_created_again(self, host: Planner) -> None:
        directory = self.make(host)
        Path(f"{directory}/state").write_text("other")
        template = host.sandbox().machine.template
        assert template is not None
        assert not template.usable
        [warning] = host.said.warnings
        assert warning.startswith("this start is a cold one: the template ")

    def test_directory_that_others_may_write_to_is_not_used(self, host: Planner) -> None:
        self.make(host)
        os.chmod(f"{host.cache}/templates", 0o777)
        assert host.sandbox().machine.template is None
        assert "others may write" in host.said.warnings[0]

    def test_configuration_disables_templates(self, host: Planner) -> None:
        assert host.sandbox(host.config(more="[template]\nenabled = false")).machine.template is None
