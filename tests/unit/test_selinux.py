"""The SELinux label of a container: when it is refused, and which programs run with it."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hawse.errors import ConfigError, HostError
from hawse.host.selinux import check, enabled, executing_as
from hawse.monitor.machine.start_programs import launch
from hawse.state.steps import Steps
from tests.support.bundles import specification, write
from tests.support.plans import machine_plan
from tests.support.runtime import Runtime
from tests.support.sysfs import FakeSysfs

LABEL = "system_u:system_r:container_kvm_t:s0:c1,c2"
MOUNT = "25 24 0:22 / /sys/fs/selinux {} shared:8 - selinuxfs selinuxfs {}\n"
OTHER = "24 1 0:21 / /sys rw,nosuid shared:7 - sysfs sysfs rw\n"


def host(root: str, mounts: str, current: str = "system_u:system_r:container_runtime_t:s0\0") -> FakeSysfs:
    sysfs = FakeSysfs(root)
    sysfs.write("proc/self/mountinfo", mounts)
    sysfs.write("proc/self/attr/current", current)
    return sysfs


@pytest.mark.parametrize(
    ("mounts", "current", "expected"),
    [
        (OTHER + MOUNT.format("rw,relatime", "rw"), "system_u:system_r:init_t:s0\0", True),
        (OTHER + MOUNT.format("rw,relatime", "rw"), "kernel\0", False),
        (OTHER + MOUNT.format("ro,relatime", "rw"), "system_u:system_r:init_t:s0\0", False),
        (OTHER + MOUNT.format("rw,relatime", "ro"), "system_u:system_r:init_t:s0\0", False),
        ("25 24 0:22 / /sys/fs/selinux rw - selinuxfs selinuxfs rw\n", "system_u:system_r:init_t:s0\0", True),
        ("25 24 0:22 / /sys/fs/selinux - selinuxfs selinuxfs rw\n", "system_u:system_r:init_t:s0\0", False),
        ("25 24 0:22 / /sys/fs/selinux rw - selinuxfs selinuxfs\n", "system_u:system_r:init_t:s0\0", False),
        (OTHER, "docker-default (enforce)\n", False),
        ("selinuxfs\n - selinuxfs\n", "kernel", False),
    ],
)
def test_selinux_is_enabled_if_a_policy_is_loaded(tmp_path: Path, mounts: str, current: str, expected: bool) -> None:
    assert enabled(root=host(str(tmp_path), mounts, current).root) is expected


def test_selinux_is_disabled_without_proc(tmp_path: Path) -> None:
    assert not enabled(root=str(tmp_path))


def test_label_without_selinux_is_refused_as_by_runc(tmp_path: Path) -> None:
    root = host(str(tmp_path), OTHER).root
    words = r"^config\.json: process\.selinuxLabel: selinux label is specified in config, but selinux is disabled or no"
    with pytest.raises(ConfigError, match=words):
        check("config.json", LABEL, root=root)
    check("config.json", "", root=root)
    check("config.json", LABEL, root=host(str(tmp_path), MOUNT.format("rw", "rw")).root)


@pytest.mark.skipif(enabled(), reason="this host has SELinux")
def test_container_with_a_label_without_effect_is_refused(tmp_path: Path) -> None:
    runtime = Runtime(str(tmp_path))
    (tmp_path / "rootfs").mkdir()
    write(str(tmp_path), specification(["/bin/true"], selinuxLabel=LABEL))
    result = runtime("create", "--bundle", str(tmp_path), "c1")
    assert result.code == 1
    assert result.errors.startswith(f"hawse: {tmp_path}/config.json: process.selinuxLabel: selinux label is specified")
    assert os.listdir(runtime.root) == []


def test_only_programs_started_in_the_block_have_the_label(tmp_path: Path) -> None:
    attribute = tmp_path / "exec"
    attribute.write_text("")
    with executing_as(LABEL, attribute=str(attribute)):
        assert attribute.read_text() == LABEL
    assert attribute.read_text() == ""


def test_nothing_is_written_without_a_label(tmp_path: Path) -> None:
    with executing_as("", attribute=str(tmp_path / "missing" / "exec")):
        pass


def test_label_that_the_kernel_refuses_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(HostError, match=rf"^process\.selinuxLabel: {LABEL}: .*: {os.strerror(errno.EISDIR)}$"),
        executing_as(LABEL, attribute=str(tmp_path)),
    ):
        pass


def test_program_that_may_not_have_the_label_is_named_with_it(tmp_path: Path) -> None:
    attribute = tmp_path / "exec"
    with pytest.raises(HostError) as caught, executing_as(LABEL, attribute=str(attribute)):
        raise HostError("cannot run QEMU: /usr/bin/qemu: Permission denied", hint="install it")
    assert caught.value.message.startswith(f"process.selinuxLabel: {LABEL}: cannot run QEMU")
    assert attribute.read_text() == ""


@contextmanager
def recorded(path: str) -> Iterator[list[str]]:
    """An attribute that records the labels that are written to it."""
    os.mkfifo(path)
    seen: list[str] = []

    def read() -> None:
        while not "".join(seen).endswith("end"):
            with open(path) as file:
                seen.append(file.read())

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield seen
    finally:
        with open(path, "w") as file:
            file.write("end")
        thread.join()


def test_qemu_and_virtiofsd_are_started_with_the_label(tmp_path: Path) -> None:
    machine = machine_plan(
        qemu="/bin/true", memory_mib=16, share="virtiofs", virtiofsd=["/bin/true"], label=LABEL, boot_seconds=1
    )
    attribute = str(tmp_path / "exec")
    steps = Steps(str(tmp_path / "steps.json"), [])
    with recorded(attribute) as seen:
        launch(machine, str(tmp_path), steps, share_plugged=True, attribute=attribute).undo.close()
    assert "".join(seen) == f"{LABEL}{LABEL}end"
