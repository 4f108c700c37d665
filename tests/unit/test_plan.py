"""The plan from a bundle and the configuration: the effect of each field."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from hawse.errors import ConfigError, DeviceError, HostError
from hawse.oci.default_spec import example
from hawse.planner.devices import selection
from hawse.planner.shown_files import shown
from hawse.vfio.groups import Function, HostGroup
from hawse.vm.ports import MIB
from hawse.vm.size import host_size
from tests.support.bundles import add_devices
from tests.support.netns import Namespace
from tests.support.ready import DEVICES, EMULATED, Change, Planner, annotated, limited, make_qemu

COLD = f'[devices]\nplug = "cold"\n{EMULATED}'
CRI = {"io.kubernetes.cri.container-type": "sandbox"}
NODES = [("/dev/vfio/vfio", 10, 196), ("/dev/vfio/5", 0, 0)]


@pytest.fixture
def host(tmp_path: Path) -> Planner:
    return Planner(str(tmp_path))


def test_plain_container(host: Planner) -> None:
    planned = host.sandbox(timeline="/t.json")
    container = planned.container
    assert (container.id, container.bundle, container.rootfs) == ("c1", host.bundle, f"{host.bundle}/rootfs")
    assert (container.annotations, container.plugs, container.nodes) == ({}, [], [])
    assert (container.binds, container.native) == ([], {})
    assert (planned.pod, planned.timeline, container.owner, container.network) == (False, "/t.json", "root", "")
    assert container.spec["process"]["env"] == ["PATH=/bin:/usr/bin"]
    assert [share.name for share in container.shares] == ["rootfs", "modules"]
    assert [share.common for share in container.shares] == [False, False]
    modules = container.shares[1]
    assert (modules.source, modules.readonly) == (f"{host.cache}/images/d1/modules", True)
    machine, shape = planned.machine, planned.machine.shape
    assert (machine.modules, machine.load_modules) == ("c1/modules", [])
    assert (shape.memory_mib, shape.cpus, machine.page_kib, shape.accel) == (1024, 2, 0, "tcg")
    assert shape.kernel == f"{host.cache}/images/d1/vmlinux"
    assert shape.machine_properties == {"hpet", "usb"}
    assert len(planned.ports) == 4
    assert host.said.warnings == []


def test_container_without_optional_sections(host: Planner) -> None:
    """Only the namespaces of linux are required; env, mounts and annotations may be missing."""

    def change(spec: dict[str, Any]) -> None:
        spec["linux"] = {"namespaces": [{"type": "network"}, {"type": "mount"}]}
        del spec["mounts"], spec["process"]["env"], spec["hostname"]

    host.write(change)
    planned = host.sandbox()
    assert (planned.container.spec["process"]["env"], planned.container.cgroup.path) == ([], "")


class TestSize:
    """Limits that make the VM larger than configured."""

    @pytest.mark.parametrize(
        ("change", "size"),
        [
            (limited(), (1024, 2)),
            (limited(memory={}), (1024, 2)),
            (limited(memory={"limit": 700 * MIB}), (1024, 2)),
            (limited(memory={"limit": 800 * MIB}), (2048, 2)),
            (limited(cpu={"shares": 5}), (1024, 2)),
            (limited(cpu={"quota": 1000, "period": 1000}), (1024, 1)),
            (limited(cpu={"quota": 200_000}), (1024, 2)),
            (annotated(CRI | {"io.kubernetes.cri.sandbox-memory": str(800 * MIB)}), (2048, 2)),
            (annotated({"io.kubernetes.cri.sandbox-memory": str(800 * MIB)}), (1024, 2)),
        ],
    )
    def test_memory_and_cpus(self, host: Planner, change: Change, size: tuple[int, int]) -> None:
        host.write(change)
        machine = host.sandbox(host.config(vm="cpus = 1" if size[1] == 1 else "")).machine
        assert (machine.shape.memory_mib, machine.shape.cpus) == size

    @pytest.mark.parametrize(
        ("quota", "period", "cpus"), [(150_000, None, 2), (150_000, 50_000, 3), (100_000, 100_000, 1), (0, 1000, 1)]
    )
    def test_quota_is_divided_by_its_period(self, host: Planner, quota: int, period: int | None, cpus: int) -> None:
        host.write(limited(cpu={"quota": quota} | ({"period": period} if period else {})))
        expected = min(cpus, os.cpu_count() or 1)
        assert host.sandbox(host.config(vm="cpus = 1")).machine.shape.cpus == expected

    @pytest.mark.parametrize(("period", "cpus"), [("", 2), ("200000", 1)])
    def test_quota_of_a_pod_is_divided_by_the_period_of_the_pod(self, host: Planner, period: str, cpus: int) -> None:
        """The limits of the sandbox's own process do not concern the containers."""
        annotations = {"io.kubernetes.cri.sandbox-cpu-quota": "200000", "io.kubernetes.cri.sandbox-cpu-period": period}

        def change(spec: dict[str, Any]) -> None:
            annotated(CRI | {key: value for key, value in annotations.items() if value})(spec)
            limited(cpu={"quota": 5, "period": 1_000_000}, memory={"limit": MIB})(spec)

        host.write(change)
        assert host.sandbox(host.config(vm="cpus = 1")).machine.shape.cpus == min(cpus, os.cpu_count() or 1)

    def test_limit_above_the_memory_of_the_host_is_a_warning(self, host: Planner) -> None:
        """A limit of all of the host's memory or more counts as no limit."""
        mib = host_size()["host_mib"]
        for limit, warned in ((mib - 1, True), (mib, False), (512, False)):
            host.write(limited(memory={"limit": limit * MIB}))
            host.sandbox()
            assert (
                any("limit: " in text and "does not have more memory" in text for text in host.said.warnings) is warned
            )

    @pytest.mark.parametrize(
        ("vm", "words"),
        [
            ("overhead_mib = 175", "vm.overhead_mib is 175, and QEMU and its helpers may need 176 MiB"),
            ("overhead_mib = 176", ""),
            ("overhead_mib = 0", ""),
        ],
    )
    def test_overhead_that_is_too_small_is_refused(self, host: Planner, vm: str, words: str) -> None:
        if not words:
            host.sandbox(host.config(vm=vm))
            return
        with pytest.raises(ConfigError, match=words):
            host.sandbox(host.config(vm=vm))

    def test_memory_above_that_of_the_host_is_a_warning(self, host: Planner) -> None:
        host.sandbox(host.config(vm="memory_mib = 4194304"))
        assert any(text.startswith("vm.memory_mib: ") for text in host.said.warnings)

    @pytest.mark.parametrize(
        ("cpu", "vm", "cpus"),
        [
            ({"cpus": "0"}, "", 1),
            ({"cpus": "0", "quota": 200_000}, "", 1),
            ({"cpus": "all"}, "", min(os.cpu_count() or 1, 255)),
            ({"cpus": "0"}, "cpus = 3", 3),
            ({"cpus": ""}, "", 2),
        ],
    )
    def test_cpus_are_those_of_the_cpuset(self, host: Planner, cpu: dict[str, Any], vm: str, cpus: int) -> None:
        host.write(limited(cpu=cpu))
        assert host.sandbox(host.config(vm=vm)).machine.shape.cpus == cpus

    def test_hugepages_of_the_annotation_are_added_to_the_memory(self, host: Planner) -> None:
        host.write(annotated({"hawse.hugepages": "2MB:512"}))
        planned = host.sandbox()
        assert (planned.container.hugepages, planned.machine.shape.memory_mib) == ([(2048, 512)], 2048)

    def test_missing_hugepages_of_the_host_are_an_error(self, host: Planner) -> None:
        with pytest.raises(HostError, match="takes 4096 huge pages of 1GB"):
            host.sandbox(host.config(vm='hugepages = "1GB"\nmemory_mib = 4194304'))


class TestRoles:
    """Single containers, sandboxes of pods, and their ports."""

    def test_pod_has_ports_for_the_devices_of_its_containers(self, host: Planner) -> None:
        host.write(annotated(CRI))
        planned = host.sandbox(host.config(more="[devices]\npod_window_mib = 64"))
        assert planned.pod
        assert len(planned.ports) == 16
        assert [port.bridge for port in planned.ports].count(True) == 2
        assert {port.prefetchable for port in planned.ports} == {64 * MIB}

    def test_pod_of_podman_is_recognized_by_its_program(self, host: Planner) -> None:
        def change(spec: dict[str, Any]) -> None:
            annotated({"io.container.manager": "libpod"})(spec)
            spec["process"]["args"] = ["/catatonit", "-P"]

        host.write(change)
        assert host.sandbox().pod


class TestDevices:
    """Groups of the specification and of the annotation."""

    @pytest.mark.parametrize("config", [EMULATED, COLD])
    def test_group_is_plugged(self, host: Planner, config: str) -> None:
        host.write(lambda spec: add_devices(spec, NODES))
        planned = host.sandbox(host.config(more=config))
        [step] = planned.container.plugs
        assert (step.group, step.cold) == (5, config == COLD)
        assert [node.path for node in planned.container.nodes] == ["/dev/vfio/vfio", "/dev/vfio/5"]
        assert list(planned.machine.shape.cold) == (step.commands if config == COLD else [])
        assert (planned.machine.template is None) is (config == COLD)
        assert any(f"emulated edu is {step.guest_address} in the guest" in text for text in host.said.details)

    def test_vm_without_devices_has_a_template_with_either_plug_mode(self, host: Planner) -> None:
        assert host.sandbox(host.config(more=COLD)).machine.template is not None

    @pytest.mark.parametrize("pod", [False, True])
    def test_annotation_names_a_group(self, host: Planner, pod: bool) -> None:
        host.write(annotated({"hawse.devices": "6"} | (CRI if pod else {})))
        planned = host.sandbox(host.config(more=EMULATED))
        assert [step.group for step in planned.container.plugs] == [6, 6]
        assert {node.path for node in planned.container.nodes} == {"/dev/vfio/vfio", "/dev/vfio/6"}

    @pytest.mark.parametrize("native", [False, True])
    def test_device_mode_leaves_devices_to_the_guests_drivers(self, host: Planner, native: bool) -> None:
        host.write(annotated({"hawse.device-mode": "guest-kernel"} if native else {}, *NODES))
        planned = host.sandbox(host.config(more=EMULATED))
        assert [step.group for step in planned.container.plugs] == [5]
        rights = {5: {"fileMode": 0o666, "uid": 0, "gid": 0}}
        assert planned.container.native == (rights if native else {})
        assert bool(planned.container.nodes) is not native
        drivers = [share.source for share in planned.container.shares if share.name == "drivers"]
        assert drivers == ([f"{host.cache}/images/d1/drivers"] if native else [])

    def test_privileged_container_omits_groups_that_cannot_be_passed(self, host: Planner) -> None:
        def change(spec: dict[str, Any]) -> None:
            add_devices(spec, [*NODES, ("/dev/vfio/999999", 4095, 7)])
            spec["linux"]["resources"]["devices"] = [{"allow": True, "access": "rwm"}]

        host.write(change)
        planned = host.sandbox(host.config(more=EMULATED))
        assert [step.group for step in planned.container.plugs] == [5]
        devices = planned.container.spec["linux"]["devices"]
        assert [device["path"] for device in devices] == ["/dev/vfio/vfio", "/dev/vfio/5"]
        [warning] = host.said.warnings
        assert "/dev/vfio/999999" in warning

    def test_privileged_container_with_all_devices_causes_no_warning(self, host: Planner) -> None:
        def change(spec: dict[str, Any]) -> None:
            add_devices(spec, NODES)
            spec["linux"]["resources"]["devices"] = [{"allow": True, "access": "rwm"}]

        host.write(change)
        assert [step.group for step in host.sandbox(host.config(more=EMULATED)).container.plugs] == [5]
        assert host.said.warnings == []

    def test_group_that_the_configuration_does_not_allow_is_an_error(
        self, host: Planner, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        nic = Function(address="0000:81:00.0", vendor=1, device=2, class_code=0x020000, driver="vfio-pci", bars=())
        monkeypatch.setattr(selection, "find_groups", lambda *_: [HostGroup(9, (nic,))])
        host.write(annotated({"hawse.devices": "9"}))
        with pytest.raises(
            DeviceError, match=r"group 9 cannot be passed: 0000:81:00.0 \(0001:0002\) is not in the list"
        ):
            host.sandbox(host.config(more='[devices]\nallow = ["driver:ixgbe"]\n'))

    def test_group_that_does_not_exist_is_an_error(self, host: Planner) -> None:
        host.write(lambda spec: add_devices(spec, [("/dev/vfio/999999", 4095, 7)]))
        with pytest.raises(DeviceError, match="group 999999 is missing"):
            host.sandbox(host.config(more=EMULATED))

    def test_model_that_qemu_lacks_is_named(self, host: Planner) -> None:
        make_qemu(host.qemu, devices=[name for name in DEVICES if name != "edu"])
        host.write(lambda spec: add_devices(spec, NODES))
        with pytest.raises(HostError, match=r"QEMU 9\.2\.1 has no device edu"):
            host.sandbox(host.config(more=EMULATED))


class TestNotes:
    """Messages to the user about the specification."""

    def test_field_without_effect_is_a_warning_or_a_detail(self, host: Planner) -> None:
        def change(spec: dict[str, Any]) -> None:
            spec["process"]["apparmorProfile"] = "docker-default"
            spec["linux"]["mountLabel"] = "system_u:object_r:container_file_t:s0"

        host.write(change)
        host.sandbox()
        assert [text.partition(":")[0] for text in host.said.warnings] == ["process.apparmorProfile"]
        assert any(text.startswith("linux.mountLabel") for text in host.said.details)

    @pytest.mark.parametrize(("systemd", "path"), [(False, "/a:b:c"), (True, "/a.slice/b-c.scope")])
    def test_cgroup_path_is_read_as_the_option_says(self, host: Planner, systemd: bool, path: str) -> None:
        written = "a.slice:b:c" if systemd else "a:b:c"
        host.write(lambda spec: spec["linux"].update({"cgroupsPath": written}))
        assert host.sandbox(systemd=systemd).container.cgroup.path == path

    def test_network_of_the_engine_is_checked_first(self, host: Planner) -> None:
        def change(spec: dict[str, Any]) -> None:
            spec["linux"]["namespaces"] = [{"type": kind} for kind in ("mount", "uts")]
            spec["linux"]["namespaces"].append({"type": "network", "path": path})

        with Namespace() as network:
            path = network.path
            host.write(change)
            before = len(os.listdir("/proc/self/fd"))
            assert host.sandbox().container.network == path
            assert len(os.listdir("/proc/self/fd")) == before
        with pytest.raises(ConfigError, match="no such file or directory"):
            host.sandbox()


def test_programs_of_the_host_see_the_shared_files(host: Planner) -> None:
    """File systems of the guest are empty there; for paths that only the guest has, just the mount points are
    created."""
    Path(f"{host.directory}/directory").mkdir()
    Path(f"{host.directory}/file").touch()

    def change(spec: dict[str, Any]) -> None:
        spec["mounts"] = [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/sys", "type": "bind", "source": "/sys", "options": ["rbind"]},
            {"destination": "/version", "type": "bind", "source": "/proc/version", "options": ["bind"]},
            {"destination": "/debug", "type": "debugfs", "source": "none"},
            {"destination": "/nodes", "type": "bind", "source": "/dev/vfio/", "options": ["rbind"]},
            {"destination": "/files", "type": "bind", "source": "/dev/vfio/devices", "options": ["rbind"]},
            {"destination": "/none", "type": "bind", "source": "/dev/no-such-node", "options": ["bind"]},
            {"destination": "/d", "type": "bind", "source": f"{host.directory}/directory", "options": ["rbind"]},
            {"destination": "/f", "type": "bind", "source": f"{host.directory}/file", "options": ["bind", "ro"]},
        ]
        spec["linux"]["devices"] = [{"path": "/deep/null", "type": "c", "major": 1, "minor": 3}]

    host.write(change)
    assert shown(host.sandbox().container) == [
        {"destination": "/dev", "type": "tmpfs"},
        {"destination": "/proc", "type": "proc"},
        {"destination": "/sys", "type": "directory"},
        {"destination": "/version", "type": "file"},
        {"destination": "/debug", "type": "directory"},
        {"destination": "/nodes", "type": "directory"},
        {"destination": "/files", "type": "directory"},
        {"destination": "/d", "source": f"{host.directory}/directory", "is_dir": True, "readonly": False},
        {"destination": "/f", "source": f"{host.directory}/file", "is_dir": False, "readonly": True},
        {"destination": "/deep/null", "type": "file"},
    ]
    host.write(lambda spec: spec.update({"mounts": [{"destination": "/dev", "type": "tmpfs", "source": "tmpfs"}]}))
    assert shown(host.sandbox().container) == [{"destination": "/dev", "type": "tmpfs"}]


def test_example_is_a_complete_container(host: Planner) -> None:
    """`hawse spec` and an empty root file system are enough."""
    host.write(lambda spec: spec.update(example()))
    assert host.sandbox().container.spec["root"]["readonly"] is True
