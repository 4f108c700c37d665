"""A template's digest: it changes with every input that a restored VM depends on, and with no other."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hawse.cache import results
from hawse.host.own_programs import PACKAGES
from hawse.vm import templates
from hawse.vm.arguments import VmShape

CPU = """processor\t: {number}
vendor_id\t: GenuineIntel
cpu family\t: 6
model name\t: Xeon
stepping\t: 4
microcode\t: 0x1
cpu MHz\t\t: {mhz}
flags\t\t: fpu vme
bogomips\t: 1

"""


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A root directory with the files of a VM and a CPU."""
    for name in ("qemu", "kernel", "initrd"):
        (tmp_path / name).write_text(name)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text("".join(CPU.format(number=number, mhz=2000) for number in range(2)))
    return tmp_path


@pytest.fixture
def shape(host: Path) -> VmShape:
    return VmShape(
        qemu=f"{host}/qemu", accel="kvm", memory_mib=1, cpus=2, kernel=f"{host}/kernel", initrd=f"{host}/initrd",
        kernel_append="", bridges=[{"driver": "pcie-root-port", "id": "port0"}], share="virtiofs",
    )  # fmt: skip


def digest(shape: VmShape, host: Path, **options: Any) -> str:
    return templates.digest_of(shape, **{"version": "7.2", "root": str(host)} | options)


def changed(shape: VmShape, **fields: Any) -> VmShape:
    return replace(shape, **fields)


CHANGES: dict[str, list[Any]] = {
    "accel": ["tcg"],
    "memory_mib": [2],
    "cpus": [3],
    "kernel_append": ["debug"],
    "bridges": [[], [{"driver": "pcie-root-port", "id": "port0", "io-reserve": 0}]],
    "share": ["9p", ""],
    "machine_properties": [frozenset({"hpet"}), frozenset({"usb"})],
    "cold": [[("device_add", {"driver": "edu", "id": "vfio-5-0", "bus": "port0", "addr": "0.0"})]],
    "one_thread": [True],
    "address_bits": [39],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in CHANGES.items() for value in values])
def test_every_field_of_the_vm_changes_the_digest(shape: VmShape, host: Path, name: str, value: Any) -> None:
    assert digest(changed(shape, **{name: value}), host) != digest(shape, host)


def test_all_fields_of_the_vm_are_covered() -> None:
    files = {"qemu", "kernel", "initrd"}
    assert {field.name for field in fields(VmShape)} == CHANGES.keys() | files


def rewrite(path: str) -> None:
    Path(path).write_text("another")


def touch(path: str) -> None:
    os.utime(path, ns=(0, os.stat(path).st_mtime_ns + 1))


@pytest.mark.parametrize("change", [rewrite, touch])
@pytest.mark.parametrize("name", ["qemu", "kernel", "initrd"])
def test_changed_file_changes_the_digest(shape: VmShape, host: Path, name: str, change: Callable[[str], None]) -> None:
    before = digest(shape, host)
    assert digest(shape, host) == before
    change(f"{host}/{name}")
    assert digest(shape, host) != before


@pytest.mark.parametrize("name", ["qemu", "kernel", "initrd"])
def test_moved_file_changes_the_digest_but_a_symlink_does_not(shape: VmShape, host: Path, name: str) -> None:
    before = digest(shape, host)
    os.symlink(f"{host}/{name}", f"{host}/link")
    assert digest(changed(shape, **{name: f"{host}/link"}), host) == before
    shutil.copy2(f"{host}/{name}", f"{host}/copy")
    assert digest(changed(shape, **{name: f"{host}/copy"}), host) != before


def test_missing_file_is_an_error(shape: VmShape, host: Path) -> None:
    os.unlink(f"{host}/initrd")
    with pytest.raises(FileNotFoundError):
        digest(shape, host)


@pytest.mark.parametrize("options", [{"version": "7.3"}, {"layout": 99}])
def test_version_changes_the_digest(shape: VmShape, host: Path, options: dict[str, Any]) -> None:
    assert digest(shape, host, **options) != digest(shape, host)


@pytest.mark.parametrize(
    ("old", "new", "is_another"),
    [
        ("GenuineIntel", "AuthenticAMD", True),
        ("Xeon", "Core", True),
        ("stepping\t: 4", "stepping\t: 5", True),
        ("0x1", "0x2", True),
        ("fpu vme", "fpu", True),
        ("2000", "3000", False),
        ("bogomips\t: 1", "bogomips\t: 2", False),
    ],
)
def test_host_cpu_changes_the_digest_only_with_kvm(
    shape: VmShape, host: Path, old: str, new: str, is_another: bool
) -> None:
    emulated = replace(shape, accel="tcg")
    before, before_emulated = digest(shape, host), digest(emulated, host)
    path = host / "proc" / "cpuinfo"
    path.write_text(path.read_text().replace(old, new))
    assert (digest(shape, host) != before) is is_another
    assert digest(emulated, host) == before_emulated


def test_number_of_host_cpus_does_not_change_the_digest(shape: VmShape, host: Path) -> None:
    before = digest(shape, host)
    (host / "proc" / "cpuinfo").write_text(CPU.format(number=0, mhz=2000))
    assert digest(shape, host) == before


def test_file_key_contains_path_size_and_time(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("12345")
    os.utime(path, ns=(1, 2_000_000_003))
    assert results.file_key(str(path)) == [str(path), 5, 2_000_000_003]


def test_process_of_any_hash_seed_has_the_same_digest(host: Path, shape: VmShape) -> None:
    """The order of a set's elements differs from process to process (object.__hash__), and a plan has a set."""
    shape = replace(shape, machine_properties=frozenset({"usb", "vmport", "smbus", "sata", "i8042", "hpet"}))
    program = (
        "from hawse.vm import templates\n"
        "from hawse.vm.arguments import VmShape\n"
        f"shape = {shape!r}\n"
        f"print(list(shape.machine_properties), templates.digest_of(shape, version='7.2', root={str(host)!r}))"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": str(seed), "PYTHONPATH": PACKAGES},
            capture_output=True, text=True, check=True,
        ).stdout.rpartition(" ")
        for seed in range(4)
    ]  # fmt: skip
    assert len({order for order, _, _ in outputs}) > 1, "the order differs"
    assert {printed.strip() for _, _, printed in outputs} == {digest(shape, host)}


def test_plan_that_was_sent_to_the_monitor_has_the_same_digest(shape: VmShape, host: Path) -> None:
    sent = replace(
        shape, machine_properties=frozenset({"usb", "hpet"}), cold=[("device_add", {"driver": "edu", "id": "a"})]
    )
    received = msgspec.json.decode(msgspec.json.encode(sent), type=VmShape)
    assert digest(received, host) == digest(sent, host)
