"""The user and the reachable files of a jailed QEMU: the numbers in docs/security.md."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from hawse.config import Vm
from hawse.errors import HostError
from hawse.jail import elf, tree
from hawse.jail.seccomp import ALLOWED
from tests.support.bundles import add_devices, busybox, make_bundle, make_probe_bundle, write
from tests.support.caches import CACHE
from tests.support.mount_table import mounts_of
from tests.support.patience import wait_until
from tests.support.processes import children, name_of
from tests.support.runtime import Runtime
from tests.support.suites import newer_qemu, newest_qemu

pytestmark = pytest.mark.vm

USERS = range(2130706432, 2130771968)


def monitor_of(runtime: Runtime, name: str = "c1") -> int:
    return runtime.monitor(name)


def child_of(pid: int, name: str) -> int:
    """The child of a process with this name."""
    [child] = [child for child in children(pid) if name_of(child).startswith(name)]
    return child


def status_of(pid: int) -> dict[str, list[str]]:
    text = Path(f"/proc/{pid}/status").read_text()
    return {key: value.split() for key, value in re.findall(r"(\w+):\t(.*)", text)}


def reachable(pid: int) -> tuple[list[str], list[str]]:
    """The files and the device nodes below the root of a process, except /proc."""
    root = f"/proc/{pid}/root"
    files: list[str] = []
    nodes: list[str] = []
    for directory, names, entries in os.walk(root):
        if directory == root:
            names.remove("proc")
        for entry in entries:
            path = f"{directory}/{entry}".removeprefix(root)
            (nodes if path.startswith("/dev/") else files).append(path)
    return files, sorted(nodes)


def test_qemu_has_a_private_user_and_reaches_only_its_own_files(runtime: Runtime, tmp_path: Path) -> None:
    runtime.configure('[emulated]\n5 = ["edu"]\n')
    bundle = str(tmp_path / "bundle")
    make_bundle(bundle, ["/bin/sleep", "1000"])
    runtime.run_detached(bundle, "c1")
    qemu = child_of(runtime.monitor("c1"), "qemu")
    status = status_of(qemu)
    assert int(status["Uid"][0]) in USERS and len(set(status["Uid"] + status["Gid"])) == 1
    assert status["Groups"] == []
    assert {status[f"Cap{kind}"][0] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"]) == (["1"], ["2"])
    assert status["NSpid"] == [str(qemu), "1"]
    assert Path(f"/proc/{qemu}/environ").read_bytes() == b""
    for kind in ("mnt", "pid", "net", "ipc", "uts", "cgroup"):
        assert os.readlink(f"/proc/{qemu}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}"), kind
    files, nodes = reachable(qemu)
    print(f"QEMU reaches {len(files)} files and {nodes}; {len(ALLOWED)} system calls are allowed")
    assert len(files) < 70
    assert nodes == ["/dev/null"]
    interfaces = Path(f"/proc/{qemu}/net/dev").read_text().splitlines()[2:]
    assert [line.split(":")[0].strip() for line in interfaces] == ["lo"]
    limits = Path(f"/proc/{qemu}/limits").read_text()
    for name in ("core file size", "file size"):
        assert re.search(rf"Max {name}\s+0\s+0", limits), name
    writable = [mount.point for mount in mounts_of(qemu) if "rw" in mount.options and mount.point != "/proc"]
    assert writable == ["/dev", "/sys"], "which it cannot write to, since root owns them"
    assert runtime("delete", "--force", "c1").code == 0
    assert not os.path.exists(f"{runtime.root}/c1")


def test_two_sandboxes_have_different_users(runtime: Runtime, tmp_path: Path) -> None:
    users = []
    for name in ("c1", "c2"):
        make_bundle(f"{tmp_path}/{name}", ["/bin/sleep", "1000"])
        runtime.run_detached(f"{tmp_path}/{name}", name)
        users.append(status_of(child_of(runtime.monitor(name), "qemu"))["Uid"][0])
    assert len(set(users)) == 2


def test_qemu_dies_with_its_monitor(runtime: Runtime, tmp_path: Path) -> None:
    make_bundle(f"{tmp_path}/bundle", ["/bin/sleep", "1000"])
    runtime.run_detached(f"{tmp_path}/bundle", "c1")
    monitor = runtime.monitor("c1")
    qemu = child_of(monitor, "qemu")
    os.kill(monitor, 9)
    wait_until(lambda: not os.path.exists(f"/proc/{qemu}") or status_of(qemu)["State"][0] == "Z")


def test_programs_that_do_not_react_do_not_outlive_the_container(runtime: Runtime, tmp_path: Path) -> None:
    """Such as QEMU and virtiofsd that a guest has compromised. The fixture proves that nothing is left."""
    runtime.configure('[emulated]\n5 = ["edu"]\n6 = ["edu"]\n')
    bundle = str(tmp_path / "bundle")
    spec = make_bundle(bundle, ["/bin/sleep", "1000"])
    add_devices(spec, [("/dev/vfio/vfio", 10, 196), ("/dev/vfio/5", 511, 5), ("/dev/vfio/6", 511, 6)])
    write(bundle, spec)
    runtime.run_detached(bundle, "c1")
    monitor = runtime.monitor("c1")
    virtiofsd = child_of(monitor, "virtiofsd")
    stopped = [child_of(monitor, "qemu"), virtiofsd, child_of(virtiofsd, "virtiofsd")]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    deleted = runtime("delete", "--force", "c1", seconds=60)
    print(f"it was deleted after {time.monotonic() - began:.1f} s")
    assert (deleted.code, deleted.errors) == (0, "")
    assert [pid for pid in stopped if os.path.exists(f"/proc/{pid}")] == []


@pytest.mark.parametrize(
    ("find_qemu", "template"),
    [(lambda: Vm().qemu, True), (newer_qemu, True), (newer_qemu, False), (newest_qemu, True)],
    ids=["configured", "newer", "newer that boots", "newest"],
)
def test_device_works_with_every_qemu(runtime: Runtime, tmp_path: Path, find_qemu: Any, template: bool) -> None:
    runtime.configure(
        f'[vm]\nqemu = "{find_qemu()}"\n[template]\nenabled = {str(template).lower()}\n[emulated]\n5 = ["edu"]\n'
    )
    bundle = str(tmp_path / "bundle")
    make_probe_bundle(bundle, group=("/dev/vfio/5", 511, 5))
    result = runtime("run", "--bundle", bundle, "c1")
    assert result.code == 0, result
    assert "confined" not in result.errors
    assert json.loads(result.output)["passed"] is True


def test_script_instead_of_qemu_is_refused_or_a_warning(runtime: Runtime, tmp_path: Path) -> None:
    script = tmp_path / "qemu"
    script.write_text(f'#!/bin/sh\nexec {Vm().qemu} "$@"\n')
    script.chmod(0o755)
    bundle = str(tmp_path / "bundle")
    make_bundle(bundle, ["/bin/true"])
    runtime.configure(f'[vm]\nqemu = "{script}"\n')
    refused = runtime("run", "--bundle", bundle, "c1")
    assert refused.code != 0
    assert f"QEMU cannot be confined, as vm.confine requires: {script} is not an ELF program" in refused.errors
    runtime.configure(f'[vm]\nqemu = "{script}"\nconfine = "auto"\n')
    warned = runtime("run", "--bundle", bundle, "c1")
    assert warned.code == 0
    assert f"warning: QEMU is not confined: {script} is not an ELF program" in warned.errors


def copied_qemu(directory: Path) -> str:
    """Copy the configured QEMU with its firmware and modules to a directory; returns the path of the program."""
    qemu = f"{directory}/usr/bin/qemu"
    os.makedirs(os.path.dirname(qemu))
    shutil.copy(Vm().qemu, qemu)
    for name in ("qemu", "seabios"):
        shutil.copytree(f"/usr/share/{name}", f"{directory}/usr/share/{name}", symlinks=True)
    shutil.copytree("/usr/lib/x86_64-linux-gnu/qemu", f"{directory}/usr/lib/x86_64-linux-gnu/qemu")
    return qemu


def test_jail_tree_is_created_again_when_qemu_has_changed(tmp_path: Path) -> None:
    cache, qemu = str(tmp_path / "cache"), copied_qemu(tmp_path)
    first = tree.obtain(qemu, cache=cache)
    inode = os.stat(first).st_ino
    assert tree.obtain(qemu, cache=cache) == first and os.stat(first).st_ino == inode
    os.utime(qemu)
    second = tree.obtain(qemu, cache=cache)
    assert second != first
    kept = [name for name in os.listdir(f"{cache}/jails") if "." not in name]
    assert sorted(kept) == sorted(["lock", os.path.basename(second)])


def test_tree_of_a_running_qemu_is_not_removed(tmp_path: Path) -> None:
    """The kernel detaches the mounts on a removed directory, also in other mount namespaces."""
    cache, qemu = str(tmp_path / "cache"), copied_qemu(tmp_path)
    first = tree.obtain(qemu, cache=cache)
    held = tree.hold(first)
    os.utime(qemu)
    second = tree.obtain(qemu, cache=cache)
    assert os.path.isdir(first) and second != first
    os.close(held)
    os.utime(qemu)
    third = tree.obtain(qemu, cache=cache)
    assert [os.path.isdir(path) for path in (first, second, third)] == [False, False, True]
    with pytest.raises(FileNotFoundError):
        tree.hold(first)


def test_damaged_tree_is_created_again(tmp_path: Path) -> None:
    """For example after a power failure, or on a full disk."""
    cache, qemu = str(tmp_path / "cache"), copied_qemu(tmp_path)
    first = tree.obtain(qemu, cache=cache)
    os.truncate(first + qemu, 0)
    second = tree.obtain(qemu, cache=cache)
    assert second != first
    assert os.path.getsize(second + qemu) == os.path.getsize(qemu)
    assert tree.obtain(qemu, cache=cache) == second


def test_static_program_is_not_run_to_list_its_libraries(tmp_path: Path) -> None:
    """It would ignore the request and run as root. It then fails its trial run in the jail."""
    for name in ("qemu", "seabios"):
        shutil.copytree(f"/usr/share/{name}", f"{tmp_path}/share/{name}", symlinks=True)
    os.makedirs(f"{tmp_path}/bin")
    program = f"{tmp_path}/bin/qemu"
    shutil.copy(busybox(), program)
    assert elf.interpreter(program) == ""
    assert elf.interpreter(Vm().qemu).startswith("/lib")
    with pytest.raises(HostError, match="exits at startup with only the jail's files"):
        tree.obtain(program, cache=str(tmp_path / "cache"))


def test_jail_tree_is_small() -> None:
    built = tree.obtain(Vm().qemu, cache=CACHE)
    files = [path for path in Path(built).rglob("*") if path.is_file()]
    assert len(files) < 70
    assert not any(path.stat().st_mode & 0o222 for path in files if path.parent.name != "boot")
